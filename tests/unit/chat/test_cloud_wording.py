"""What a person reads about the cloud: waits, money, what was left out."""

from __future__ import annotations

import pytest

from shammah.bus.messages import Done, Provenance, Retrying, Timings, Usage
from shammah.chat.summary import describe_answer
from shammah.router.decision import Reason, RouteDecision, Target
from shammah.terminal.wording import describe_cost, describe_retrying


@pytest.mark.parametrize(
    ("wait_s", "words"),
    [
        (3.2, "Claude is overloaded; trying again in 4 s (2 of 5)"),
        (0.0, "Claude is overloaded; trying again in 1 s (2 of 5)"),
        (61.0, "Claude is overloaded; trying again in 1 min 1 s (2 of 5)"),
    ],
)
def test_a_wait(wait_s: float, words: str) -> None:
    assert describe_retrying(Retrying("r", "Claude is overloaded", wait_s, 2, 5)) == words


def test_a_server_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in describe_retrying(Retrying("r", "The \x1b[2J server", 1.0, 2, 5))


@pytest.mark.parametrize(
    ("dollars", "words"),
    [
        (0.0, "$0.00"),
        (0.00003, "less than $0.0001"),
        (0.0021, "$0.0021"),
        (0.25, "$0.25"),
        (1234.5, "$1,234.50"),
    ],
)
def test_money(dollars: float, words: str) -> None:
    assert describe_cost(dollars) == words


def test_the_answers_line_says_what_it_cost_and_what_was_left_out() -> None:
    usage = Usage(100, 20, cost=0.0021)
    done = Done("r", "stop", usage, Timings(), Provenance("cloud", "m"), left_out=2)
    line = describe_answer(done, RouteDecision(Target.CLOUD, Reason.USER))
    assert line.endswith("$0.0021 · 2 private turns left out")
