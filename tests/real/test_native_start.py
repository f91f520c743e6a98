"""What a start of the native engine does without, also the first on a machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from shammah.models.catalogue import starter_directory
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


_ANSWER = """
import json, os, sys, threading
opened = []
sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
from shammah.bus.messages import ChatMessage, Ended, Generate, Sampling, Token
from shammah.settings.load import load_settings
from workers.inference.service import InferenceService
from workers.service import Outlet

service, outlet = InferenceService(load_settings(os.environ, "starter")), Outlet(lambda: None)
threading.Thread(target=service.run, args=(outlet,), daemon=True).start()
service.submit(Generate("1", (ChatMessage("user", "Hi"),), Sampling(0.0), 1), "me")
while not isinstance(said := outlet.queue.get(timeout=60), Token):
    assert not isinstance(said, Ended), said
print(json.dumps([sorted(sys.modules), opened, os.environ["OPENBLAS_NUM_THREADS"]]), flush=True)
os._exit(0)
"""


def test_a_warm_start_imports_and_reads_only_what_its_first_token_needs(tmp_path: Path) -> None:
    environ = {**os.environ, "SHAMMAH_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environ.pop("OPENBLAS_NUM_THREADS", None)
    for _ in range(2):  # the first one packs the weights
        command = [sys.executable, "-c", _ANSWER]
        ended = subprocess.run(
            command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True
        )
    modules, opened, blas_threads = json.loads(ended.stdout)
    unneeded = "asyncio huggingface_hub multiprocessing numba peft psutil safetensors torch"
    assert not {*unneeded.split(), "transformers"} & set(modules)
    assert opened.count(str(starter_directory() / "model.safetensors")) == 1  # its header
    kept = [path for path in opened if path.startswith(str(tmp_path / "quantized"))]
    assert len(kept) == 2  # its header, and to map it
    assert blas_threads == "1"  # they spin
