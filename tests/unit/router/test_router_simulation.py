"""The simulator's claims (docs/ROUTING.md), with fewer people and the same seed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "simulate_router.py"


@pytest.fixture(scope="module")
def figures() -> dict[str, dict[str, float]]:
    command = [sys.executable, str(SCRIPT), "--runs", "3", "--questions", "3000", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    found: dict[str, dict[str, float]] = json.loads(ended.stdout)
    return found


def test_measured_comes_to_answer_locally_what_it_can(figures: dict[str, dict[str, float]]) -> None:
    measured = figures["measured"]
    assert measured["first_local_question"] == 1
    assert measured["local_where_good_at_the_end"] >= 0.95
    assert measured["regret_a_question_second_half"] <= 0.01
    assert measured["local_after_the_change_first_50"] >= 0.9
    assert measured["explored"] <= 0.05 + 1 / 3000


def test_exploration_frees_the_classic_policy_of_its_deadlock(
    figures: dict[str, dict[str, float]],
) -> None:
    assert figures["original"]["dollars_saved"] == 0
    assert figures["classic"]["first_local_question"] >= 10
    assert figures["classic"]["local_where_good_at_the_end"] >= 0.9
    assert figures["classic"]["dollars_saved"] < figures["measured"]["dollars_saved"]
