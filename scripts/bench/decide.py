#!/usr/bin/env python3
"""What a decision costs, with a full file of statistics.

The question is read and decided as a frontend does it. What to quote is the ratio to one SELECT
of one row from the same file, measured in turns with it in the same run.

    .venv/bin/python scripts/bench/decide.py
    .venv/bin/python scripts/bench/decide.py --rounds 2000 --json
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from shammah.bus.messages import ChatMessage, Ready
from shammah.router.decision import Override, Target, View, decide
from shammah.router.question import examine
from shammah.router.route import Arm, Category, Reason
from shammah.router.statistics import Label, Outcome
from shammah.router.store import KEPT, Store
from shammah.settings.model import RouterSettings

MODELS = [f"model-{number}" for number in range(10)]
QUESTION = (
    "I have a list of dictionaries in Python and want to group it by one key, keeping the order "
    "in which the keys were first seen. What is the usual way to do this, and does it differ "
    "between versions? I do not want to add a dependency for it."
)


def fill(path: Path) -> None:
    """As many outcomes as are kept, of every category and ten models."""
    dice = random.Random(1)
    store = Store(path)
    for number in range(KEPT):
        arm = Arm(dice.choice(list(Category)), dice.choice(list(Target)), dice.choice(MODELS))
        label = dice.choice(list(Label))
        turn = f"turn-{number}"
        store.add(Outcome(turn, number, arm, Reason.USER, "stop", label, True, 0.5, 20.0))
    store.close()


def milliseconds(work: Callable[[], object]) -> float:
    """Of this thread's processor time: what others do meanwhile is none of it."""
    began = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - began) / 1e6


def measure(path: Path, rounds: int) -> dict[str, float]:
    began = time.perf_counter()
    store = Store(path)
    snapshot = store.read()
    store.close()
    read_s = time.perf_counter() - began
    view = View(Ready(MODELS[0]), Ready(MODELS[1]), True, MODELS[1])
    conversation = (ChatMessage("user", QUESTION),)
    rules, override = RouterSettings(), Override()
    database = sqlite3.connect(path)

    def whole() -> object:
        return decide(examine(conversation), override, view, snapshot, rules)

    question = examine(conversation)

    def alone() -> object:
        return decide(question, override, view, snapshot, rules)

    def select() -> object:
        return database.execute("SELECT label FROM outcomes WHERE turn = 'turn-9'").fetchone()

    whole()
    works = (whole, alone, select)
    times = [tuple(map(milliseconds, works)) for _ in range(rounds)]
    database.close()
    wholes, alones, selects = (sorted(column) for column in zip(*times, strict=True))
    middle, last = rounds // 2, rounds * 99 // 100
    return {
        "read_and_decide_p50_ms": wholes[middle],
        "read_and_decide_p99_ms": wholes[last],
        "decide_p50_ms": alones[middle],
        "decide_p99_ms": alones[last],
        "select_p50_ms": selects[middle],
        "decide_to_select_p50": alones[middle] / selects[middle],
        "read_and_decide_to_select_p50": wholes[middle] / selects[middle],
        "whole_file_read_ms": 1000 * read_s,
        "arms": len(snapshot.arms),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "router.db"
        fill(path)
        found = measure(path, options.rounds)
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:32} {value:10.4f}")


if __name__ == "__main__":
    main()
