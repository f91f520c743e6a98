#!/usr/bin/env python3
"""What the bus costs: tokens per second of an answer to a client, over those in-process.

    .venv/bin/python scripts/bench/bus.py --rounds 10

In turns: the same engine called in this process, token by token; and a worker that is asked
through `shammah.bus.client`, as the REPL does. Same questions, same seeds, hence the same
tokens; a rate is of the decoding, from the first token to the last as this process sees them.
The figures to quote are the ratios of the rounds, and that of the best ones.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from worker import Home, Worker, scratch

from shammah.bus.messages import ChatMessage, Done, Failed, Sampling, Token
from shammah.models.catalogue import starter_directory
from workers.inference.engine import Engine, LoadSettings, SequenceRequest
from workers.inference.engines.table import ENGINES
from workers.inference.packages.checkpoint import inspect_checkpoint
from workers.inference.scheduling.sampling import SamplingPlan
from workers.inference.text.chat import ChatFormat
from workers.text.model_text import ModelText

QUESTIONS = ("Write a story about the sea.", "How do I make bread?", "Who was Isaac Newton?")


class Quiet:
    """A load that nobody watches."""

    def stage(self, name: str) -> None:
        """Not of interest."""

    def advance(self) -> None:
        """Not of interest."""


class InProcess:
    def __init__(self, home: Path) -> None:
        self._chat = ChatFormat(ModelText.load(starter_directory()))
        self._engine: Engine = ENGINES["native"].make()
        settings = LoadSettings(kv_memory=0.5, home=home)
        self._engine.load(inspect_checkpoint(starter_directory()), settings, Quiet())

    def rate(self, question: str, tokens: int, seed: int) -> tuple[int, float]:
        """Tokens of the answer after the first, and seconds from the first to the last."""
        prompt = self._chat.encode((ChatMessage("user", question),))
        plan = SamplingPlan(1.0, 1.0, 50, 1.0, seed)
        stop = self._chat.stop_ids
        self._engine.submit(SequenceRequest("a", prompt, plan, tokens, stop))
        detokenizer = self._chat.detokenizer()
        count, first, last = 0, 0.0, 0.0
        while self._engine.active:
            for result in self._engine.step():
                for token in result.token_ids:
                    detokenizer.add(token)
                count += result.generated
                last = time.perf_counter()
                first = first or (last if result.generated else 0.0)
        return count - 1, last - first


def rate(worker: Worker, question: str, tokens: int, seed: int) -> tuple[int, float]:
    """The same through the bus."""
    task = worker.ask(question, tokens, Sampling(1.0, 1.0, 50, 1.0, seed=seed))
    first = 0.0
    for reply in task:
        assert not isinstance(reply, Failed), reply
        if isinstance(reply, Token):
            first = first or time.perf_counter()
        if isinstance(reply, Done):
            return reply.usage.output_tokens - 1, time.perf_counter() - first
    raise AssertionError


def measure(options: argparse.Namespace) -> list[tuple[float, float]]:
    """Of each round: tokens per second in-process and through the bus."""
    rounds = []
    with scratch() as directory:
        home = Home.make(directory, "native")
        inside = InProcess(Path(home.environ["SHAMMAH_HOME"]))
        worker = Worker(home, "starter")
        try:
            for round_ in range(options.rounds + 1):
                pairs = []
                for number, question in enumerate(QUESTIONS):
                    seed = 10 * round_ + number
                    ours = inside.rate(question, options.tokens, seed)
                    theirs = rate(worker, question, options.tokens, seed)
                    assert ours[0] == theirs[0], "not the same answer"
                    pairs.append((ours, theirs))
                count = sum(a[0] for a, _ in pairs)
                times = [sum(pair[way][1] for pair in pairs) for way in (0, 1)]
                if round_:  # the first warms up
                    rounds.append((count / times[0], count / times[1]))
        finally:
            worker.close()
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200, help="of an answer, at most")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rounds = measure(options)
    ratios = [bus / inside for inside, bus in rounds]
    best = [max(pair[way] for pair in rounds) for way in (0, 1)]
    result = {
        "in_process": best[0],
        "bus": best[1],
        "ratio_of_the_best": best[1] / best[0],
        "median_ratio": statistics.median(ratios),
    }
    if options.json:
        print(json.dumps(result | {"rounds": rounds}))
        return
    print(
        f"tokens per second: in-process {best[0]:.1f}, through the bus {best[1]:.1f} (best rounds)"
    )
    print(
        f"ratio: {result['ratio_of_the_best']:.3f} of the best, {result['median_ratio']:.3f} median"
    )


if __name__ == "__main__":
    main()
