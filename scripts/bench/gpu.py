#!/usr/bin/env python3
"""The transformers runner on a GPU: whether it is right, and how near it comes to memory's speed.

In this order, within 15 minutes on one GPU:

1. right: a small model in float32, in pages on the device, beside the same on the CPU without
   pages: chunks, batches, cut back and copied slots, steps that were recorded;
2. speed: a model of the shape of Qwen2.5-7B with random weights in 16 bits: a prompt, and one and
   sixteen conversations, greedy; beside the tokens per second that the measured bandwidth allows if
   every weight is read once for a token of each conversation;
3. the same with vLLM, if an interpreter has it (``--vllm PYTHON``).

    python scripts/bench/gpu.py --folder FOLDER          FOLDER keeps the weights (15 GB)
    python scripts/bench/gpu.py --folder FOLDER --vllm .venv-vllm/bin/python --json

Without a GPU the same code runs on the CPU with a small shape, and says so: that shows only that
it runs.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

CONVERSATIONS = 16
PROMPT, ANSWER = 256, 128
"""Tokens of each conversation on a GPU."""

ON_CPU = (32, 8)
"""The same on a CPU."""

CLOSE = 2e-3
"""Between logits of about 1 in float32 on two devices: sums in other orders."""


# --- is it right --------------------------------------------------------------------------


def check(device: str, folder: Path) -> dict[str, Any]:
    """Compare pages on the device with slots on the CPU.

    Raises:
        SystemExit: they say something else.
    """
    import numpy as np

    from workers.inference.runner import Span

    runners = [
        load(folder, "cpu", "float32", paged=False),
        load(folder, device, "float32", paged=True),
    ]
    for runner in runners:
        runner.reserve(CONVERSATIONS, 2048)
    worst, same, rows = 0.0, 0, 0
    for number, spans in enumerate(passes()):
        if number == COPIED_AT:
            for runner in runners:
                runner.copy(2, 9, 70)
        theirs, ours = (runner.forward([Span(*one) for one in spans]) for runner in runners)
        for one, other in zip(theirs, ours, strict=True):
            worst = max(worst, float(np.abs(one - other).max(initial=0.0)))
            same += int((one.argmax(-1) == other.argmax(-1)).sum())
            rows += len(one)
    if worst > CLOSE or same < 0.99 * rows:
        raise SystemExit(f"WRONG: {worst:.2g} apart, {same} of {rows} first choices the same")
    return {"worst": worst, "same_first_choices": same / rows, "rows": rows}


COPIED_AT = 14
"""The pass before which slot 9 becomes a copy of the first 70 tokens of slot 2."""


def passes() -> Iterator[list[tuple[int, int, tuple[int, ...]]]]:
    """Yield spans: slot, start and tokens."""

    def tokens(salt: int, count: int) -> tuple[int, ...]:
        return tuple(3 + (salt * 37 + k * 13) % 2000 for k in range(count))

    lengths = [5 + 61 * slot for slot in range(8)]
    for slot, length in enumerate(lengths):
        yield [(slot, 0, tokens(slot, length))]
    for step in range(6):  # the same shapes with other numbers: what was recorded is replayed
        slots = ([0, 3, 7], [7, 1, 4], [2], [6], [5, 6, 7, 1, 0], [7])[step]
        yield [(slot, lengths[slot], tokens(step + slot, 1)) for slot in slots]
        for slot in slots:
            lengths[slot] += 1
    yield [(9, 70, tokens(9, 300))]  # after the copy
    yield [(7, 100, tokens(70, 1)), (9, 370, tokens(71, 1))]  # cut back
    yield [(7, 101, tokens(72, 1)), (9, 371, tokens(73, 1)), (1, lengths[1], tokens(74, 40))]


# --- how fast -----------------------------------------------------------------------------


class Quiet:
    """A load that nobody watches."""

    def stage(self, name: str) -> None:
        """Not of interest."""

    def advance(self) -> None:
        """Not of interest."""


def load(folder: Path, device: str, dtype: str, *, paged: bool) -> Any:
    """A loaded runner."""
    from workers.inference.engine import LoadSettings
    from workers.inference.engines.transformers.runner import TransformersRunner
    from workers.inference.packages.checkpoint import inspect_checkpoint

    runner = TransformersRunner(paged=paged)
    runner.load(inspect_checkpoint(folder), LoadSettings(device, dtype, "none"), Quiet())
    return runner


def bandwidth(device: str, size: int) -> float:
    """Bytes of memory per second that copying reads and writes, the best of several times."""
    import torch

    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(8):
        wait(device)
        began = time.perf_counter()
        target.copy_(source)
        wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size / best


def wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def prompts(count: int, salt: int, length: int) -> list[tuple[int, ...]]:
    """Different each time, so that no prefix is reused."""
    return [
        tuple(100 + (salt * 7919 + n * 613 + k * (31 + n)) % 1900 for k in range(length))
        for n in range(count)
    ]


def measure(device: str, folder: Path, dtype: str) -> dict[str, Any]:
    """Tokens per second, of the runner alone and of the engine with its sampler."""
    from workers.inference.engine import LoadSettings
    from workers.inference.engines.transformers.runner import TransformersRunner
    from workers.inference.packages.checkpoint import inspect_checkpoint
    from workers.inference.scheduling.batched_engine import BatchedEngine

    checkpoint = inspect_checkpoint(folder)
    runner = TransformersRunner(paged=True)
    engine = BatchedEngine(runner)
    began = time.perf_counter()
    facts = engine.load(checkpoint, LoadSettings(device, dtype, "none", 4096), Quiet())
    loaded = time.perf_counter() - began
    shape = checkpoint.shape
    assert shape is not None
    width = {"bfloat16": 2, "float16": 2, "float32": 4}[facts.dtype]
    table = 0 if shape.tied else shape.vocabulary * shape.hidden
    bytes_of_a_token = width * (checkpoint.parameters - table)
    speed = bandwidth(device, 2**30 if device == "cuda" else 2**28)
    limit = speed / bytes_of_a_token
    length, answer = (PROMPT, ANSWER) if device == "cuda" else ON_CPU
    found: dict[str, Any] = {
        "dtype": facts.dtype,
        "load_s": loaded,
        "bandwidth_gb_s": speed / 1e9,
        "limit_tokens_s": limit,
        "conversations": {},
    }
    for count in (1, min(CONVERSATIONS, runner.limits.batch)):
        run(engine, prompts(count, 1, length), answer)  # records its steps
        took = run(engine, prompts(count, 2, length), answer)
        alone = decode_alone(runner, prompts(count, 3, length), answer, device)
        found["conversations"][str(count)] = {
            "prompt_tokens_s": count * length / took["prompts_s"],
            "tokens_s": count * (answer - 1) / took["answers_s"],
            "of_the_limit": (answer - 1) / took["answers_s"] / limit,
            "runner_alone_tokens_s": count / alone,
            "runner_alone_of_the_limit": 1 / alone / limit,
        }
    if device == "cuda":
        import torch

        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def run(engine: Any, wanted: Sequence[tuple[int, ...]], answer: int) -> dict[str, float]:
    """Seconds until every prompt is read, and from then on until every answer has ended."""
    from workers.inference.engine import SequenceRequest
    from workers.inference.scheduling.sampling import SamplingPlan

    began = time.perf_counter()
    for number, prompt in enumerate(wanted):
        plan = SamplingPlan()
        # Those that begin early have more to say, so that all end together.
        more = answer + len(wanted) - 1 - number
        engine.submit(SequenceRequest(str(number), prompt, plan, more, frozenset()))
    begun: set[str] = set()
    read = 0.0
    while engine.active:
        for result in engine.step():
            assert result.failure is None, result.failure
            begun |= {result.request_id} if result.generated else set()
        if not read and len(begun) == len(wanted):
            read = time.perf_counter()
    return {"prompts_s": read - began, "answers_s": time.perf_counter() - read}


def decode_alone(runner: Any, wanted: Sequence[tuple[int, ...]], answer: int, device: str) -> float:
    """Seconds of a pass for the next token of each conversation, without an engine."""
    from workers.inference.runner import Span

    for slot, prompt in enumerate(wanted):
        runner.forward([Span(slot, 0, prompt)])
    length, slots = len(wanted[0]), range(len(wanted))
    runner.forward([Span(slot, length, (7,)) for slot in slots])
    wait(device)
    began = time.perf_counter()
    for step in range(1, answer):
        runner.forward([Span(slot, length + step, (7 + step,)) for slot in slots])
    wait(device)
    return (time.perf_counter() - began) / (answer - 1)


# --- vLLM ---------------------------------------------------------------------------------


def measure_vllm(folder: Path) -> dict[str, Any]:
    """In an interpreter that has it: the difference of a long and a short answer is decoding."""
    from vllm import LLM, SamplingParams

    llm = LLM(str(folder), skip_tokenizer_init=True, dtype="bfloat16", max_model_len=4096)
    found = {}
    for count in (1, CONVERSATIONS):
        seconds = {}
        for salt, tokens in enumerate((ANSWER, 1, ANSWER), 5):  # the first warms up
            asked = [{"prompt_token_ids": list(one)} for one in prompts(count, salt, PROMPT)]
            options = {"temperature": 0.0, "ignore_eos": True, "detokenize": False}
            began = time.perf_counter()
            llm.generate(asked, SamplingParams(max_tokens=tokens, **options), use_tqdm=False)
            seconds[tokens] = time.perf_counter() - began
        found[str(count)] = count * (ANSWER - 1) / (seconds[ANSWER] - seconds[1])
    return found


def ask_vllm(python: str, folder: Path) -> dict[str, Any]:
    command = [python, __file__, "--folder", str(folder), "--only-vllm"]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        return {"failed": f"exit status {ended.returncode}"}
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


# ------------------------------------------------------------------------------------------


def describe(found: dict[str, Any]) -> Iterator[str]:
    """Yield what was found, for people."""
    right, speed = found["right"], found["speed"]
    yield f"{found['device']}: {found['name']}, shape {found['shape']}, {speed['dtype']}"
    yield f"right: {right['rows']} rows, at most {right['worst']:.1e} apart"
    yield (
        f"memory {speed['bandwidth_gb_s']:.0f} GB/s, so at most {speed['limit_tokens_s']:.1f} "
        f"tokens/s for one; loaded in {speed['load_s']:.0f} s"
    )
    for count, one in speed["conversations"].items():
        yield (
            f"{count:>2} conversations: {one['tokens_s']:.1f} tokens/s "
            f"({one['of_the_limit']:.2f} of the limit; runner alone "
            f"{one['runner_alone_tokens_s']:.1f}, {one['runner_alone_of_the_limit']:.2f}), "
            f"prompts {one['prompt_tokens_s']:.0f} tokens/s"
        )
        if theirs := found.get("vllm", {}).get(count):
            yield f"   vLLM: {theirs:.1f} tokens/s, so {one['tokens_s'] / theirs:.2f} of it"
    if "vllm" not in found:
        yield "vLLM: not here"
    elif "failed" in found["vllm"]:
        yield f"vLLM: {found['vllm']['failed']}"
    if found["device"] == "cpu":
        yield "NO GPU: this shows only that the code runs."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where weights are kept between runs")
    parser.add_argument("--shape", help="by default 7B on a GPU, 135M on a CPU")
    parser.add_argument("--vllm", help="an interpreter that has vLLM")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only-vllm", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_vllm:
        print(json.dumps(measure_vllm(options.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="gpu-") as scratch:
        found = examine(options, options.folder or Path(scratch))
    if options.json:
        print(json.dumps(found))
    else:
        print(*describe(found), sep="\n")


def examine(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import torch

    from scripts.bench.random_model import random_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = options.shape or ("7B" if device == "cuda" else "135M")
    for name in ("tiny", shape):
        if not (folder / name / "model.safetensors").exists():
            random_model(folder / name, name)
    found: dict[str, Any] = {
        "device": device,
        "name": torch.cuda.get_device_name() if device == "cuda" else "no GPU",
        "shape": shape,
        "right": check(device, folder / "tiny"),
        "speed": measure(device, folder / shape, "auto"),
    }
    python = options.vllm or (sys.executable if importlib.util.find_spec("vllm") else "")
    if python and device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        found["vllm"] = ask_vllm(python, folder / shape)
    return found


if __name__ == "__main__":
    main()
