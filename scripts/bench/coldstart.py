#!/usr/bin/env python3
"""How long from the start of a worker process to Ready and to the first token on the bus.

    .venv/bin/python scripts/bench/coldstart.py -n 10
    .venv/bin/python scripts/bench/coldstart.py --llama-cli PATH -m FILE.gguf

In turns: the native engine; transformers; and llama.cpp's program (``llama-cli``,
``llama-completion`` or ``llama-simple``), the whole process for one token of the same prompt.
Everything is in the page cache, kernels and packed weights are kept: the first round of each
is thrown away. The figures to quote are ratios; other programs can only make a start slower,
so those of the best rounds are given beside the medians. `cpu` is the worker's processor time,
which says more on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from worker import Home, Worker, first_token, scratch

QUESTION = "What is the capital of France?"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""The starter's template writes it where nobody has set another."""
PROMPT = (
    f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n"
    "<|im_start|>assistant\n"
)

Times = dict[str, float]


def start_worker(home: Home, model: str) -> Times:
    worker = Worker(home, model)
    try:
        first_token(worker.ask(QUESTION, 1))
        token = worker.elapsed()
        return {
            "attached": worker.welcome_s,
            "ready": worker.ready_s,
            "first token": token,
            "cpu": worker.cpu_seconds(),
        }
    finally:
        worker.close()


def run_llama(program: str, model: str) -> Times:
    command = [program, "-m", model, "-n", "1", "-p", PROMPT]
    if Path(program).name != "llama-simple":
        command += ["-no-cnv", "--no-warmup"]
    began = time.perf_counter()
    subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return {"first token": time.perf_counter() - began}


def measure(options: argparse.Namespace) -> dict[str, list[Times]]:
    with scratch() as directory:
        ways: dict[str, Callable[[], Times]] = {}
        for engine in options.engines:
            home = Home.make(directory, engine)
            ways[engine] = lambda home=home: start_worker(home, options.model)
        if options.llama_cli:
            ways["llama.cpp"] = lambda: run_llama(options.llama_cli, options.gguf)
        found: dict[str, list[Times]] = {name: [] for name in ways}
        for round_ in range(options.rounds + 1):
            for name, way in ways.items():
                times = way()
                if round_:
                    found[name].append(times)
                if not options.json:
                    told = ", ".join(f"{what} {value:.2f}" for what, value in times.items())
                    print(f"{name}{'' if round_ else ' (not counted)'}: {told}", file=sys.stderr)
    return found


def report(found: dict[str, list[Times]]) -> dict[str, dict[str, float]]:
    """Ratios of the first engine's time to its first token to each other's."""
    first, *others = found
    ratios = {}
    for other in others:
        ours, theirs = ([times["first token"] for times in found[name]] for name in (first, other))
        pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
        ratios[f"{first} / {other}"] = {
            "median": statistics.median(pairs),
            "of the best": min(ours) / min(theirs),
        }
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", "--rounds", type=int, default=5)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--engines", nargs="+", default=["native", "transformers"])
    parser.add_argument("--llama-cli", metavar="PATH")
    parser.add_argument("-m", "--gguf", metavar="FILE")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options)
    ratios = report(found)
    if options.json:
        print(json.dumps({"seconds": found, "ratios": ratios}))
        return
    for name, rounds in found.items():
        best = {what: min(times[what] for times in rounds) for what in rounds[0]}
        middle = {what: statistics.median(times[what] for times in rounds) for what in rounds[0]}
        cells = (f"{what} {best[what]:.2f} ({middle[what]:.2f})" for what in best)
        print(f"{name:14} best (median) seconds: {', '.join(cells)}")
    for name, ratio in ratios.items():
        print(f"{name}: {ratio['of the best']:.3f} of the best, median {ratio['median']:.3f}")


if __name__ == "__main__":
    main()
