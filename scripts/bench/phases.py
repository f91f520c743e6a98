#!/usr/bin/env python3
"""Where a step of the native engine spends its time, phase by phase.

    .venv/bin/python scripts/bench/phases.py                       the starter, decoding
    .venv/bin/python scripts/bench/phases.py --shape 0.5B --before 1000

The kernels are compiled once more, with a clock that is read where a phase ends: the processor's
own counter (so this is for x86 alone), which costs a thousandth of a step. Medians of the steps.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.bench.random_model import SHAPES, random_model
from shammah.models.catalogue import starter_directory
from workers.inference.engine import LoadSettings
from workers.inference.engines.native import compiler, kernels, operands
from workers.inference.engines.native.runner import NativeRunner
from workers.inference.packages.checkpoint import inspect_checkpoint
from workers.inference.runner import Span

OF_A_LAYER = (
    *("normalize", "q, k and v", "q, k and v", "rotate", "attend", "round"),
    *("o", "normalize", "gate and up", "activate", "down"),
)
ENDED = operands.FINISHED + 1
"""Where in a row of the counters the time is put."""


class Quiet:
    def stage(self, name: str) -> None:
        """Not of interest."""

    def advance(self) -> None:
        """Not of interest."""


def watch_phases() -> None:
    """Have the kernels that are defined from now on note when a phase ends."""
    kernels.carried_library = lambda objects: None  # or what is carried would be taken
    from llvmlite import ir
    from numba import types

    from workers.inference.engines.native import phases

    @compiler.operation(types.int64)
    def read_clock(builder: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(64), ())
        clock = builder.module.declare_intrinsic("llvm.readcyclecounter", (), kind)
        return builder.call(clock, ())

    wait = phases.wait_for_all

    @compiler.compiled
    def wait_and_note(counters: Any, phase: int, items: int) -> None:
        wait(counters, phase, items)
        if counters[phase, ENDED] == 0:  # who comes late, comes to what has ended already
            counters[phase, ENDED] = read_clock()

    phases.wait_for_all = wait_and_note


def ticks_per_second(step: Any, seen: list[Any]) -> float:
    """Of the processor's counter, by two steps a second apart."""
    began, first = time.perf_counter(), step()
    time.sleep(1)
    again, last = time.perf_counter(), step()
    assert first is not last
    return float((seen[-1][0, ENDED] - seen[-2][0, ENDED]) / (again - began))


def measure(runner: NativeRunner, before: int, steps: int) -> dict[str, float]:
    """Median microseconds of a step for each kind of phase, and for all that is around them."""
    computation = runner._computation
    layers = computation._architecture.layers
    seen: list[Any] = []
    module = sys.modules[type(computation).__module__]
    make = module.new_counters

    def keep(layers: int, *, adapted: bool) -> Any:
        seen.append(make(layers, adapted=adapted))
        return seen[-1]

    module.new_counters = keep
    runner.reserve(1, before + steps + 8)
    for start in range(0, before, runner.limits.chunk):
        runner.forward([Span(0, start, [7] * min(runner.limits.chunk, before - start))])
    runner.forward([Span(0, before, [7])])
    rate = ticks_per_second(lambda: runner.forward([Span(0, before, [7])]), seen)
    found: dict[str, list[float]] = {}
    for step in range(steps):
        began = time.perf_counter()
        runner.forward([Span(0, before + step, [9])])
        whole = time.perf_counter() - began
        times = seen[-1][:, ENDED]
        own: dict[str, float] = {}
        last = int(times[0])
        for layer in range(layers):
            first = 1 + layer * operands.PHASES_OF_A_LAYER
            for number, name in enumerate(OF_A_LAYER):
                ended = max(last, int(times[first + number]))
                own[name] = own.get(name, 0) + (ended - last) / rate
                last = ended
        end = 1 + layers * operands.PHASES_OF_A_LAYER
        own["normalize"] += (int(times[end + 1]) - last) / rate
        own["head"] = (int(times[end + 2]) - int(times[end + 1])) / rate
        own["outside the kernel"] = whole - sum(own.values())
        for name, seconds in own.items():
            found.setdefault(name, []).append(1e6 * seconds)
    return {name: statistics.median(all_) for name, all_ in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, help="random weights instead of the starter")
    parser.add_argument("--before", type=int, default=64, help="tokens of the conversation so far")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--quantization", choices=("int8", "int4"), default="int8")
    parser.add_argument("--scratch", type=Path, help="a folder that keeps weights and kernels")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.scratch or Path(temporary)
        directory = starter_directory()
        if options.shape:
            directory = scratch / options.shape
            if not directory.is_dir():
                random_model(directory, options.shape)
        watch_phases()
        runner = NativeRunner(scratch / "quantized", scratch / "watched-kernels")
        settings = LoadSettings(quantization=options.quantization)
        runner.load(inspect_checkpoint(directory), settings, Quiet())
        found = measure(runner, options.before, options.steps)
        runner.close()
    whole = sum(found.values())
    print(f"a step: {whole:,.0f} us with {options.before} tokens before it")
    for name, microseconds in sorted(found.items(), key=lambda pair: -pair[1]):
        print(f"{name:20} {microseconds:9,.0f} us {microseconds / whole:7.1%}")


if __name__ == "__main__":
    main()
