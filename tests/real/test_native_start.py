"""What a start of the native engine does without, once its kernels are kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.real.test_native_models import kept_kernels

ROOT = Path(__file__).resolve().parents[2]

_PREPARE = """
import json, sys
from pathlib import Path
from workers.inference.engines.native.runner import NativeRunner

runner = NativeRunner(kernels=Path(sys.argv[1]))
runner.prepare()
print(json.dumps(sorted(sys.modules)))
runner.close()
"""


def _prepare(kernels: Path) -> set[str]:
    """The modules that were imported."""
    ended = subprocess.run(
        [sys.executable, "-c", _PREPARE, str(kernels)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(ended.stdout))


def test_kept_kernels_are_loaded_without_what_compiling_needs() -> None:
    _prepare(kept_kernels())  # compiles them, if no test has before
    modules = _prepare(kept_kernels())
    assert "llvmlite.binding" in modules
    assert not {"numba", "yaml", "torch", "transformers", "scipy"} & modules
    kernels = ("quantizing", "packing", "step", "products", "lanes")
    assert not {f"workers.inference.engines.native.{name}" for name in kernels} & modules
