#!/usr/bin/env python3
"""The second turn of a long conversation: what remembering the first is worth.

In one run, on the same engine: the time to the first token of a conversation that is new to
it, and of the same one with a turn more. The figure to quote is their ratio.

    .venv/bin/python scripts/bench/prefix.py                  2,000 tokens
    .venv/bin/python scripts/bench/prefix.py --engines native --prompt 1000 --json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from generate import load_engine, prompts

from shammah.models.catalogue import starter_directory
from workers.inference.engine import Engine, SequenceRequest
from workers.inference.engines.table import ENGINES
from workers.inference.scheduling.sampling import SamplingPlan

ANSWER, QUESTION = 16, 24


def turn(engine: Engine, prompt: tuple[int, ...]) -> tuple[float, list[int], int]:
    """Seconds to the first token, the answer, and how many tokens were reused."""
    began = time.perf_counter()
    engine.submit(SequenceRequest("turn", prompt, SamplingPlan(), ANSWER, frozenset()))
    first, reused, answer = 0.0, 0, []
    while engine.active:
        for result in engine.step():
            reused += result.reused
            answer += result.token_ids
            if result.generated and not first:
                first = time.perf_counter() - began
    return first, answer, reused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, default=starter_directory())
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--prompt", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {}
    for name in options.engines:
        engine = load_engine(name, options.model, "int8")
        pairs = []
        for round_ in range(options.rounds):
            conversation = prompts(1, options.prompt, round_)[0]
            first, answer, _ = turn(engine, conversation)
            question = prompts(1, QUESTION, 1000 + round_)[0]
            second, _, reused = turn(engine, (*conversation, *answer, *question))
            pairs.append((first, second, reused))
        found[name] = {
            "first_ttft_s": statistics.median(first for first, _, _ in pairs),
            "second_ttft_s": statistics.median(second for _, second, _ in pairs),
            "ratio": statistics.median(second / first for first, second, _ in pairs),
            "reused_tokens": pairs[0][2],
        }
        if not options.json:
            facts = found[name]
            print(
                f"{name:14} {options.prompt} tokens: first turn {facts['first_ttft_s']:.2f} s, "
                f"second {facts['second_ttft_s']:.3f} s = {facts['ratio']:.3f} of it "
                f"({facts['reused_tokens']} tokens reused)"
            )
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
