#!/usr/bin/env python3
"""Thousands of conversations with people whose satisfaction is known: does the router learn?

    .venv/bin/python scripts/simulate_router.py                  figures, and plots in docs/images
    .venv/bin/python scripts/simulate_router.py --runs 3 --json  fewer, for programs; no plots

Each kind of question has a hidden truth: how often the local model and Claude please. People
label some answers (`REACTIONS`), most by saying nothing. In the middle of each run the local
model is replaced by a better one. Everything is drawn from a seed. A plot needs matplotlib
(``pip install -e '.[dev]'``).

What an answer is worth: 1 if it pleased, less `PRICE` if Claude gave it. The oracle knows the
truth and takes the better of both. Regret is what is lost against it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from shammah.bus.messages import Ready  # noqa: E402
from shammah.router.classic import ClassicState  # noqa: E402
from shammah.router.decision import Override, Reason, RouteDecision, Target, View, decide  # noqa: E402
from shammah.router.question import Category  # noqa: E402
from shammah.router.route import Arm, Question  # noqa: E402
from shammah.router.statistics import (  # noqa: E402
    Label,
    Outcome,
    Snapshot,
    Tally,
    learn_classic,
)
from shammah.settings.model import RouterSettings  # noqa: E402

QUESTIONS = 4000
CONVERSATION = 5
PRICE = 0.15
CLOUD_COST = 0.01
"""US dollars an answer; the saving is what the same answers would have cost."""

LOCAL = {
    Category.GREETING: 0.97, Category.DEFINITION: 0.90, Category.HOW_TO: 0.85,
    Category.EXPLANATION: 0.85, Category.CODE: 0.40, Category.DEBUGGING: 0.35,
    Category.COMPARISON: 0.82, Category.OPINION: 0.88, Category.OTHER: 0.80,
}  # fmt: skip
"""How often the small model pleases."""
BETTER = {**LOCAL, Category.CODE: 0.85, Category.DEBUGGING: 0.82}
"""And the one that replaces it."""
CLOUD = 0.95
SHARES = {
    Category.GREETING: 3, Category.DEFINITION: 15, Category.HOW_TO: 15, Category.EXPLANATION: 15,
    Category.CODE: 12, Category.DEBUGGING: 10, Category.COMPARISON: 5, Category.OPINION: 5,
    Category.OTHER: 20,
}  # fmt: skip

REACTIONS = {
    True: ((0.08, Label.GOOD), (0.01, Label.CANCEL), (0.01, Label.REDO)),
    False: ((0.15, Label.BAD), (0.20, Label.REDO), (0.10, Label.CANCEL), (0.10, Label.TEXT_BAD)),
}
"""Pleased or not: with which probability a person does what. Nothing else: the text looks good."""
PASSES = {True: 0.97, False: 0.45}
"""How often the original's text heuristic passes an answer."""

ROUTERS = {
    "measured": RouterSettings("measured", 0.05),
    "classic": RouterSettings("classic", 0.05),
    "original": RouterSettings("classic", 0.0),
}
"""``original``: the classic policy without exploration."""


@dataclass
class Run:
    """What happened, question by question."""

    local_where_good: list[bool] = field(default_factory=list)
    local: list[bool] = field(default_factory=list)
    regret: list[float] = field(default_factory=list)
    changed: list[bool] = field(default_factory=list)
    """After the change: whether a question that the new model can answer was local."""
    first_local: int = 0
    explored: int = 0


class Memory:
    """A snapshot that is kept up to date without a file."""

    def __init__(self) -> None:
        self.arms: dict[Arm, Tally] = {}
        self.answers = self.explored = 0
        self.classic = ClassicState()

    @property
    def snapshot(self) -> Snapshot:
        return Snapshot(self.arms, self.answers, self.explored, self.classic)

    def learn(self, outcome: Outcome) -> None:
        before = self.arms.get(outcome.arm, Tally())
        weight = outcome.label.weight
        self.arms[outcome.arm] = Tally(
            before.answers + 1,
            before.trials + weight,
            before.successes + weight * outcome.label.is_good,
        )
        self.answers += 1
        self.explored += outcome.reason is Reason.EXPLORATION
        self.classic = learn_classic(self.classic, outcome)


def simulate(rules: RouterSettings, seed: int, questions: int) -> Run:
    """One person's questions, with a change of the model in the middle."""
    dice, run, memory = random.Random(seed), Run(), Memory()
    kinds, weights = list(SHARES), list(SHARES.values())
    category = Category.OTHER
    for number in range(questions):
        after = number >= questions // 2
        truth = BETTER if after else LOCAL
        view = View(Ready("better" if after else "small"), Ready("c"), True, "c")
        if number % CONVERSATION == 0 or dice.random() < 0.3:
            category = dice.choices(kinds, weights)[0]
        question = Question(category, chance=dice.random())
        decision = decide(question, Override(), view, memory.snapshot, rules)
        assert isinstance(decision, RouteDecision)
        pleases = dice.random() < (truth[category] if decision.target is Target.LOCAL else CLOUD)
        memory.learn(_outcome(decision, pleases, dice))
        _note(run, decision, truth[category], number, changed=after and truth != LOCAL)
    return run


def _note(run: Run, decision: RouteDecision, truth: float, number: int, *, changed: bool) -> None:
    local = decision.target is Target.LOCAL
    best = max(truth, CLOUD - PRICE)
    category = decision.question.category
    run.local.append(local)
    run.regret.append(best - (truth if local else CLOUD - PRICE))
    run.explored += decision.reason is Reason.EXPLORATION
    if local and not run.first_local:
        run.first_local = number + 1
    if truth >= CLOUD - PRICE:
        run.local_where_good.append(local)
    if changed and BETTER[category] != LOCAL[category]:
        run.changed.append(local)


def _outcome(decision: RouteDecision, pleases: bool, dice: random.Random) -> Outcome:
    label, drawn = Label.TEXT_GOOD, dice.random()
    for share, reaction in REACTIONS[pleases]:
        if drawn < share:
            label = reaction
            break
        drawn -= share
    expected = decision.chosen
    assert expected is not None
    passed = dice.random() < PASSES[pleases]
    return Outcome("", 0.0, expected.arm, decision.reason, "stop", label, passed)


def figures(runs: list[Run], questions: int) -> dict[str, float]:
    """Means over the runs; shares are of 1."""
    half = questions // 2

    def late(values: list[bool]) -> float:
        return mean(values[-len(values) // 4 :])

    return {
        "first_local_question": mean(run.first_local for run in runs),
        "local_where_good_first_350": mean(mean(run.local_where_good[:350]) for run in runs),
        "local_where_good_at_the_end": mean(late(run.local_where_good) for run in runs),
        "worst_run": min(late(run.local_where_good) for run in runs),
        "regret_a_question_first_half": mean(mean(run.regret[:half]) for run in runs),
        "regret_a_question_second_half": mean(mean(run.regret[half:]) for run in runs),
        "local_after_the_change_first_50": mean(mean(run.changed[:50]) for run in runs),
        "local_after_the_change_at_the_end": mean(late(run.changed) for run in runs),
        "explored": mean(run.explored for run in runs) / questions,
        "dollars_saved": mean(sum(run.local) for run in runs) * CLOUD_COST,
        "dollars_if_all_were_cloud": questions * CLOUD_COST,
    }


def plot(results: dict[str, list[Run]], directory: Path) -> None:
    """Two pictures: the share that is local where that is good enough, and the regret."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    directory.mkdir(parents=True, exist_ok=True)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    for name, runs in results.items():
        shares = [_rolling(run.local_where_good, 200) for run in runs]
        shortest = min(map(len, shares))
        left.plot([mean(one[n] for one in shares) for n in range(shortest)], label=name)
        total, line = 0.0, []
        for number in range(len(runs[0].regret)):
            total += mean(run.regret[number] for run in runs)
            line.append(total)
        right.plot(line, label=name)
    left.axhline(0.95, color="grey", linewidth=0.8, linestyle=":")
    left.set(xlabel="questions that the local model answers well enough", ylim=(-0.02, 1.02))
    left.set_title("answered locally (last 200)")
    right.set(xlabel="questions (another model comes half way)")
    right.set_title("regret against the oracle, in good answers")
    left.legend()
    right.legend()
    figure.tight_layout()
    figure.savefig(directory / "router.png", dpi=110, metadata={"Software": None})


def _rolling(values: list[bool], window: int) -> list[float]:
    last: deque[bool] = deque(maxlen=window)
    found = []
    for value in values:
        last.append(value)
        found.append(sum(last) / len(last))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = {
        name: [simulate(rules, options.seed + n, options.questions) for n in range(options.runs)]
        for name, rules in ROUTERS.items()
    }
    found = {name: figures(runs, options.questions) for name, runs in results.items()}
    if options.json:
        print(json.dumps(found))
        return
    print(f"{'':36}" + "".join(f"{name:>10}" for name in found))
    for row in found["measured"]:
        print(f"{row:36}" + "".join(f"{each[row]:10.3f}" for each in found.values()))
    plot(results, ROOT / "docs" / "images")


if __name__ == "__main__":
    main()
