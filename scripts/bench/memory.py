#!/usr/bin/env python3
"""The memory of a load, and of twenty changes of the model.

A load, in a process of its own: the most that it ever had resident, beside what has to be there:
the weights as they are held, and the libraries. What the libraries take is what the same load
takes with a model of no size, the first that prepares the weights and the later ones each by
itself. The figure to quote is peak / (weights + libraries).

The changes go through a session as ``/model`` does, between the model and that small one: what
the frontend keeps (memory, threads, descriptors), how many workers there are, and whether the
one before was gone when the next began.

    .venv/bin/python scripts/bench/memory.py
    .venv/bin/python scripts/bench/memory.py --forms native:int8 --switches 4 --json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import psutil  # noqa: E402

from shammah.models.catalogue import starter_directory  # noqa: E402
from workers.inference.packages.checkpoint import inspect_checkpoint  # noqa: E402

FORMS = ("native:int8", "native:int4", "transformers:float32", "transformers:bfloat16")
WIDTHS = {"float32": 4, "bfloat16": 2}
READY_S = 120.0


def write_small_model(directory: Path, like: Path) -> Path:
    """A Qwen2 of no size, with the tokenizer of another model."""
    directory.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (like / name).exists():
            shutil.copyfile(like / name, directory / name)
    config = json.loads((like / "config.json").read_text())
    vocabulary, hidden = config["vocab_size"], 64
    config |= {"hidden_size": hidden, "intermediate_size": 64, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": hidden}
    config |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    config |= {"tie_word_embeddings": True, "layer_types": ["full_attention"]}
    config["max_window_layers"] = 1
    (directory / "config.json").write_text(json.dumps(config))
    layer = "model.layers.0"
    tensors = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    tensors |= {f"{layer}.{norm}_layernorm.weight": (hidden,) for norm in _NORMS}
    tensors |= {f"{layer}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
    tensors |= {f"{layer}.self_attn.{name}_proj.bias": (hidden,) for name in "qkv"}
    tensors |= {f"{layer}.mlp.{name}_proj.weight": (64, hidden) for name in ("gate", "up", "down")}
    header, position = {}, 0
    for name, shape in tensors.items():
        end = position + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(position)
    (directory / "model.safetensors").write_bytes(content)
    return directory


_NORMS = ("input", "post_attention")


# --- a load -------------------------------------------------------------------------------


class Quiet:
    """A load that nobody watches."""

    def stage(self, name: str) -> None:
        """Not of interest."""

    def advance(self) -> None:
        """Not of interest."""


def load(form: str, model: Path, home: Path) -> dict[str, Any]:
    """Load a model here, and say what it took."""
    from workers.inference.engine import LoadSettings
    from workers.inference.engines.table import ENGINES

    name, _, bits = form.partition(":")
    dtype, quantization = (bits, "none") if bits in WIDTHS else ("auto", bits)
    engine = ENGINES[name].make()
    checkpoint = inspect_checkpoint(model)
    settings = LoadSettings("cpu", dtype, quantization, home=home)
    engine.load(checkpoint, settings, Quiet())
    lines = Path("/proc/self/status").read_text().splitlines()
    told = dict(line.split(":", 1) for line in lines)
    kept = {key: int(told[key].split()[0]) * 1024 for key in ("VmHWM", "RssAnon", "RssFile")}
    # The largest: in a home of one model there is one file of weights.
    files = [path.stat().st_size for path in (home / "quantized").glob("*.safetensors")]
    held = WIDTHS[bits] * checkpoint.parameters if bits in WIDTHS else max(files)
    return {"peak": kept["VmHWM"], "anonymous": kept["RssAnon"], "mapped": kept["RssFile"]} | {
        "weights": held
    }


def measure_load(form: str, model: Path, small: Path, kernels: Path) -> dict[str, Any]:
    """The first load of a model, the second, and what both take beside the weights."""
    with tempfile.TemporaryDirectory(prefix="memory-") as scratch:
        found = {}
        # The very first may have to compile, which takes memory that later ones do not; and a
        # first load has libraries that prepare the weights, which a second one does without.
        runs = (
            *(("compiled", small), ("libraries of the first", small), ("libraries", small)),
            *(("first", model), ("second", model)),
        )
        for name, directory in runs:
            if name == "libraries of the first":
                shutil.rmtree(Path(scratch, directory.name, "quantized"), ignore_errors=True)
            home = Path(scratch, directory.name)
            home.mkdir(exist_ok=True)
            if kernels.is_dir() and not (home / "kernels").exists():
                (home / "kernels").symlink_to(kernels)
            command = [sys.executable, __file__, "--load", form, "--model", str(directory)]
            ended = subprocess.run(
                [*command, "--home", str(home)], stdout=subprocess.PIPE, text=True, check=True
            )
            found[name] = json.loads(ended.stdout.splitlines()[-1])
    weights = found["second"]["weights"]
    beside = {"first": "libraries of the first", "second": "libraries"}
    libraries = {name: found[run]["peak"] for name, run in beside.items()}
    return {
        "libraries": libraries,
        "weights": weights,
        "peak": {name: found[name]["peak"] for name in ("first", "second")},
        "kept": found["second"]["anonymous"] + found["second"]["mapped"],
        "ratio": max(found[n]["peak"] / (weights + libraries[n]) for n in libraries),
    }


# --- changes of the model -----------------------------------------------------------------


def switches(models: tuple[str, str], count: int) -> Iterator[dict[str, int]]:
    """What there is after each change."""
    from shammah.bus.endpoints import lock_holder, open_endpoints
    from shammah.chat.session import Session
    from shammah.settings.load import load_settings

    lock = open_endpoints(os.environ).lock("inference")
    session = Session(load_settings(os.environ, models[0]), os.environ, "memory", local_only=True)
    frontend, before = psutil.Process(), 0
    try:
        session.start()
        for number in range(count + 1):
            if number:
                session.use_model(models[number % 2])
            overlap = wait_ready(session, before)
            worker = lock_holder(lock) or 0
            assert worker != before, "it is the same worker"
            yield {
                "frontend_bytes": frontend.memory_info().rss,
                "frontend_threads": frontend.num_threads(),
                "frontend_descriptors": frontend.num_fds(),
                "workers": sum(is_worker(process) for process in psutil.process_iter()),
                "worker_bytes": psutil.Process(worker).memory_info().rss,
                "overlap": overlap,
            }
            before = worker
    finally:
        session.unload()
        session.close()


def wait_ready(session: Any, before: int) -> int:
    """Wait until the next worker's model answers; 1 if the one before was there when it began."""
    from shammah.bus.messages import Ready

    overlap, deadline = 0, time.monotonic() + READY_S
    while True:
        peer = session.local.peer
        welcome = peer.welcome if peer is not None else None
        if welcome is not None and welcome.pid != before:
            overlap |= int(before > 0 and is_alive(before))
            if isinstance(session.local.state, Ready):
                return overlap
        assert time.monotonic() < deadline, session.local.state
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_worker(process: psutil.Process) -> bool:
    """One of this world, and not what starts others for it, which was forked from it."""
    try:
        ours = process.environ().get("SHAMMAH_HOME") == os.environ["SHAMMAH_HOME"]
        forked = (parent := process.parent()) and parent.cmdline() == process.cmdline()
        return ours and not forked and "workers" in process.cmdline() and is_alive(process.pid)
    except psutil.Error:
        return False


def measure_switches(model: Path, small: Path, count: int, kernels: Path) -> list[dict[str, int]]:
    """Change the model so often, in a home of its own."""
    with tempfile.TemporaryDirectory(prefix="sw-", dir="/tmp") as scratch:
        home, runtime = Path(scratch, "home"), Path(scratch, "run")
        for directory in (home, runtime):
            directory.mkdir(mode=0o700)
        if kernels.is_dir():
            (home / "kernels").symlink_to(kernels)
        os.environ |= {"SHAMMAH_HOME": str(home), "XDG_RUNTIME_DIR": str(runtime)}
        os.environ["HF_HUB_OFFLINE"] = "1"
        return list(switches((str(model), str(small)), count))


# --- the report ---------------------------------------------------------------------------


def report(loads: dict[str, dict[str, Any]], changes: list[dict[str, int]]) -> None:
    for form, found in loads.items():
        sizes = {name: found[name] / 1e6 for name in ("weights", "kept")}
        sizes["libraries"] = found["libraries"]["second"] / 1e6
        first, second = (found["peak"][name] / 1e6 for name in ("first", "second"))
        print(
            f"{form:22} weights {sizes['weights']:.0f} MB + libraries {sizes['libraries']:.0f} MB; "
            f"peak {first:.0f} MB (made) and {second:.0f} MB (mapped) = {found['ratio']:.3f} of "
            f"them; kept {sizes['kept']:.0f} MB"
        )
    if changes:
        print(f"{len(changes) - 1} changes of the model, overlaps: {_sum(changes, 'overlap')}")
    for name in changes[0] if changes else ():
        if name != "overlap":
            values = [change[name] for change in changes]
            print(f"  {name:22} first {values[0]:,}  after 2 {values[2]:,}  last {values[-1]:,}")


def _sum(changes: list[dict[str, int]], name: str) -> int:
    return sum(change[name] for change in changes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, default=starter_directory())
    parser.add_argument("--forms", nargs="*", default=list(FORMS), choices=FORMS)
    parser.add_argument("--switches", type=int, default=20)
    parser.add_argument(
        "--kernels", type=Path, default=Path(sys.prefix, "share", "shammah", "kernels")
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--load", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(load(options.load, options.model, options.home)))
        return
    with tempfile.TemporaryDirectory(prefix="small-") as scratch:
        small = write_small_model(Path(scratch, "small"), options.model)
        loads = {
            form: measure_load(form, options.model, small, options.kernels)
            for form in options.forms
        }
        changes: list[dict[str, int]] = []
        if options.switches:
            changes = measure_switches(options.model, small, options.switches, options.kernels)
    if options.json:
        print(json.dumps({"loads": loads, "changes": changes}))
    else:
        report(loads, changes)


if __name__ == "__main__":
    main()
