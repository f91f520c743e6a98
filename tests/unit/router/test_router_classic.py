"""The classic policy against numbers that were worked out by hand (tests/data)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shammah.router.classic import CategoryCount, ClassicState
from shammah.router.route import Category
from shammah.router.store import read_classic, write_classic
from tests.data import DATA

GOLDEN = json.loads((DATA / "classic_router.json").read_text())


def run(steps: list[tuple[str, int]]) -> ClassicState:
    state = ClassicState()
    for what, times in steps:
        for _ in range(times):
            match what:
                case "f":
                    state = state.learn_forwarded()
                case sign:
                    state = state.learn_local(Category.CODE, sign == "+")
    return state


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["why"])
def test_it_does_what_the_original_does(case: dict[str, Any]) -> None:
    state = run(case["do"])
    assert state.confidence_threshold == pytest.approx(case["threshold"], rel=1e-9)
    assert state.min_samples == case["min_samples"]
    assert state.should_try_local(Category.CODE) is case["code"]
    assert state.should_try_local(Category.OTHER) is case["other"]
    assert state.total_queries == sum(times for _, times in case["do"])


def test_it_counts_by_category() -> None:
    state = ClassicState().learn_local(Category.CODE, True).learn_local(Category.OTHER, False)
    assert state.categories == {
        Category.CODE: CategoryCount(1, 1, 0),
        Category.OTHER: CategoryCount(1, 0, 1),
    }
    assert (state.total_local_attempts, state.total_successes) == (2, 1)


def test_the_state_survives_being_written() -> None:
    state = run([("f", 60), ("+", 5), ("-", 2)])
    assert read_classic(write_classic(state)) == state
