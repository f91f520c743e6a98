"""What a start of the native engine does without, also the first on a machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.real.models import make_qwen2

ROOT = Path(__file__).resolve().parents[2]

_LOAD = """
import json, sys
from pathlib import Path
from workers.inference.engine import LoadSettings
from workers.inference.engines.native.runner import NativeRunner
from workers.inference.packages.checkpoint import inspect_checkpoint
from workers.inference.runner import Span

class Silent:
    def stage(self, name): pass
    def advance(self): pass

model, home, quantization = sys.argv[1:]
runner = NativeRunner(Path(home, "quantized"), Path(home, "kernels"), 1)
runner.load(inspect_checkpoint(Path(model)), LoadSettings(quantization=quantization), Silent())
runner.reserve(1, 4)
runner.forward([Span(0, 0, [1, 2])])
print(json.dumps(sorted(sys.modules)))
runner.close()
"""


def test_a_first_start_compiles_nothing(tmp_path: Path) -> None:
    model = make_qwen2(tmp_path / "model")
    for quantization in ("int8", "int4"):
        command = [sys.executable, "-c", _LOAD, str(model), str(tmp_path), quantization]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        modules = set(json.loads(ended.stdout))
        assert not {"numba", "llvmlite", "yaml", "torch", "transformers", "scipy"} & modules
        kernels = ("int4_rounding", "int8_rounding", "step", "products", "lanes", "compiler")
        assert not {f"workers.inference.engines.native.{name}" for name in kernels} & modules
    assert not (tmp_path / "kernels").exists()
    assert len(list((tmp_path / "quantized").glob("*.safetensors"))) == 2
