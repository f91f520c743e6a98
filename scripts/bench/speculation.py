#!/usr/bin/env python3
"""What guessing from the prompt is worth: the same answers with it and without, in turns.

    .venv/bin/python scripts/bench/speculation.py
    .venv/bin/python scripts/bench/speculation.py --model DIRECTORY --rounds 5 --json

Three kinds of tasks: text that is quoted (the model goes on with a repetition), a file that is
edited (the answer is dictated: the old file with a class renamed and a method gone, as a
model would give it that edits well; the starter does not), and ordinary questions. Passes, rows
and answers are exact; every answer is checked to be the same both ways. Times are of the
decoding alone, the best of the rounds; other programs can only make one slower.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from tokenizers import Tokenizer  # noqa: E402

from shammah.bus.messages import ChatMessage  # noqa: E402
from shammah.models.catalogue import starter_directory  # noqa: E402
from workers.inference.engine import LoadSettings, SequenceRequest  # noqa: E402
from workers.inference.engines.native.runner import NativeRunner  # noqa: E402
from workers.inference.packages.checkpoint import inspect_checkpoint  # noqa: E402
from workers.inference.runner import Span  # noqa: E402
from workers.inference.scheduling.batched_engine import BatchedEngine  # noqa: E402
from workers.inference.scheduling.sampling import SamplingPlan, read_defaults  # noqa: E402
from workers.inference.text.chat import ChatFormat  # noqa: E402
from workers.text.model_text import ModelText  # noqa: E402

QUOTED = (ROOT / "workers/inference/text/detokenizer.py", ROOT / "LICENSE")
EDITED = ROOT / "workers/inference/text/stop_strings.py"
QUESTIONS = (
    "Explain how a bicycle stays upright.",
    "Write a Python function that sorts a list of words by their length.",
    "What are the differences between a virus and a bacterium?",
    "Give me a plan for a week in Rome.",
    "How do I make bread?",
    "Write a short story about the sea.",
)
GREEDY = SamplingPlan()
SAMPLED = SamplingPlan(0.7, 0.9, 50, 1.0, seed=1)


@dataclass(frozen=True)
class Task:
    """``dictated``: the answer, whatever the model would say."""

    kind: str
    prompt: tuple[int, ...]
    plan: SamplingPlan = GREEDY
    dictated: tuple[int, ...] = ()


@dataclass
class Tally:
    """Of the decoding of one kind of task."""

    tokens: int = 0
    passes: int = 0
    rows: int = 0
    seconds: float = 0.0


class Dictation:
    """A sampler that chooses what it is told."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = iter(tokens)

    def choose(self, logits: object) -> int:
        return next(self._tokens)


@dataclass
class Contender:
    """An engine whose passes are counted."""

    engine: BatchedEngine
    runner: NativeRunner
    rows: list[int] = field(default_factory=list)

    @classmethod
    def load(cls, directory: Path, *, speculates: bool) -> Contender:
        runner = NativeRunner()
        engine = BatchedEngine(runner, speculates=speculates)
        engine.load(inspect_checkpoint(directory), LoadSettings(kv_memory=0.5), Quiet())
        contender = cls(engine, runner)
        contender._count(runner.forward)
        return contender

    def _count(self, forward: Callable[..., Any]) -> None:
        def counted(spans: Sequence[Span]) -> Any:
            self.rows.append(sum(span.wanted for span in spans))
            return forward(spans)

        self.runner.forward = counted  # type: ignore[method-assign]

    def answer(self, task: Task, limit: int, stop: frozenset[int], tally: Tally) -> list[int]:
        count = len(task.dictated) or limit
        self.engine.submit(SequenceRequest("a", task.prompt, task.plan, count, stop))
        if task.dictated:
            self.engine._samplers["a"] = Dictation(task.dictated)  # type: ignore[assignment]
        tokens: list[int] = []
        while not tokens:
            tokens += self.engine.step()[0].token_ids
        self.rows.clear()
        began = time.perf_counter()
        generated = 0
        while self.engine.active:
            for result in self.engine.step():
                assert result.failure is None, result.failure
                tokens += result.token_ids
                generated += result.generated
        tally.seconds += time.perf_counter() - began
        tally.tokens += generated
        tally.passes += len(self.rows)
        tally.rows += sum(self.rows)
        return tokens


class Quiet:
    """A load that nobody watches."""

    def stage(self, name: str) -> None:
        """Not of interest."""

    def advance(self) -> None:
        """Not of interest."""


def make_tasks(chat: ChatFormat, tokenizer: Tokenizer) -> list[Task]:
    def plain_ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    tasks = []
    for path in QUOTED:
        text = path.read_text()[:1500]
        twice = f"{text}\n\nThe same once more:\n\n{text}\n\nAnd again:\n\n{text[:60]}"
        tasks.append(Task("quoting", plain_ids(twice)))
        tasks.append(Task("quoting", plain_ids(twice), SAMPLED))
    old = EDITED.read_text()
    new = old.replace("StopStrings", "TextEnds").partition("    def finish(self)")[0]
    asked = f"Rename the class to TextEnds, and leave out `finish`:\n```python\n{old}```"
    prompt = chat.encode((ChatMessage("user", asked),))
    answer = plain_ids(f"```python\n{new}```\n")
    tasks.append(Task("editing (dictated)", prompt, dictated=answer))
    for question in QUESTIONS:
        prompt = chat.encode((ChatMessage("user", question),))
        tasks += [Task("ordinary, greedy", prompt), Task("ordinary, sampled", prompt, SAMPLED)]
    return tasks


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    chat = ChatFormat(ModelText.load(options.model))
    stop = chat.stop_ids | read_defaults(options.model).stop_ids
    guessing = Contender.load(options.model, speculates=True)
    plain = Contender.load(options.model, speculates=False)
    found: dict[str, dict[str, float]] = {}
    tasks = make_tasks(chat, Tokenizer.from_file(str(options.model / "tokenizer.json")))
    for kind in dict.fromkeys(task.kind for task in tasks):
        rounds: list[tuple[Tally, Tally]] = []
        for _ in range(options.rounds):
            with_, without = Tally(), Tally()
            for task in tasks:
                if task.kind == kind:
                    answers = [
                        one.answer(task, options.tokens, stop, tally)
                        for one, tally in ((guessing, with_), (plain, without))
                    ]
                    assert answers[0] == answers[1], "guesses have changed an answer"
            rounds.append((with_, without))
        with_, without = rounds[-1]
        guesses = with_.rows - with_.passes
        found[kind] = {
            "tokens": with_.tokens,
            "passes_per_token": with_.passes / with_.tokens,
            "guesses_per_token": guesses / with_.tokens,
            "right": (with_.tokens - with_.passes) / guesses if guesses else 0.0,
            "times_as_fast": min(b.seconds for _, b in rounds) / min(a.seconds for a, _ in rounds),
        }
    costs = {rows: round(guessing.engine._speculation.costs.of(rows), 2) for rows in range(1, 9)}
    found["cost of a pass of so many rows"] = {str(rows): cost for rows, cost in costs.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=starter_directory())
    parser.add_argument("--tokens", type=int, default=160, help="of an answer, at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options)
    if options.json:
        print(json.dumps(found))
        return
    *kinds, costs = found
    print(
        f"{'':20} {'tokens':>7} {'passes':>12} {'guesses':>12} {'right':>6} {'times as fast':>14}"
    )
    for kind in kinds:
        f = found[kind]
        print(
            f"{kind:20} {f['tokens']:7.0f} {f['passes_per_token']:6.3f}/token "
            f"{f['guesses_per_token']:6.3f}/token {f['right']:6.1%} {f['times_as_fast']:14.2f}"
        )
    print(f"{costs}: {found[costs]}")


if __name__ == "__main__":
    main()
