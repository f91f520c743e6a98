"""What is kept of a turn, and what ``/why`` makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shammah.bus.messages import Done, Failed, Provenance, Ready, Timings, Usage
from shammah.chat.account import CORRECTED, Account, tell
from shammah.chat.conversation import Conversation, Turn
from shammah.router.decision import RouteDecision, Target, View, Wish, decide
from shammah.router.explanation import as_document
from shammah.router.route import Arm, Question, Rules
from shammah.router.statistics import Label, Snapshot, Tally

BY = Provenance(
    *("inference", "starter", "0123456789abcdef", "native", "cpu", "float32"), quantization="int8"
)
DONE = Done("r", "stop", Usage(20, 7), Timings(0.0, 0.31, 0.9, 0.0, 21.4), BY)


def decided(snapshot: Snapshot | None = None) -> RouteDecision:
    view = View(Ready("starter", context_length=4096), Ready("claude"), True, "claude")
    decision = decide(Question(), Wish(), view, snapshot or Snapshot(), Rules(), 0.5)
    assert isinstance(decision, RouteDecision)
    return decision


def lines(account: Account) -> list[str]:
    return tell(account).splitlines()


def test_an_answer_is_told_with_its_decision_and_its_course() -> None:
    told = lines(Account().routed(decided(), 1.25).ended(DONE, "t1"))
    assert told[0].startswith("The local model answered, because")
    assert told[2].startswith("  local (starter): 30% good answers expected")
    assert told[4].startswith("  cloud (claude): 95% good answers expected")
    assert "cost not known then" in told[5]
    assert told[6] == (
        "It waited 1.2 s to be asked, first token after 0.31 s, took 0.9 s, 21 tok/s, "
        "20 tokens in, 7 out."
    )
    numbers = "int8 weights computed in float32"
    assert told[7] == f"The answer is by starter at 0123456789ab (native, cpu, {numbers})."
    assert len(told) == 8


def test_a_failure_is_told_with_its_decision() -> None:
    failed = Failed("cloud_overloaded", "It is overloaded.", "Ask later.")
    told = lines(Account().routed(decided(), 0.1).ended(failed, "t1"))
    assert told[0].startswith("The local model answered")
    assert told[-1] == "It failed: It is overloaded. Ask later."


def test_a_question_that_nobody_was_asked_is_told() -> None:
    failed = Failed("not_available", "No model.", "Fetch it.")
    assert lines(Account().ended(failed, "")) == [
        "Nobody was asked.",
        "It failed: No model. Fetch it.",
    ]
    cancelled = Failed("cancelled", "Cancelled.")
    assert lines(Account().ended(cancelled, "")) == ["Nobody was asked.", "You cancelled it."]


@pytest.mark.parametrize("label", [one for one in Label if not one.startswith(("text", "broken"))])
def test_what_the_person_said_is_told(label: Label) -> None:
    account = replace(Account().routed(decided(), 0).ended(DONE, "t1"), label=label)
    assert lines(account)[-1].startswith("You ")


def test_the_adapter_that_answered_is_told() -> None:
    by = Provenance("inference", "starter", adapter="orrin")
    told = tell(Account().ended(replace(DONE, provenance=by), ""))
    assert "The answer is by starter with the adapter orrin." in told


def test_a_server_s_words_cannot_steer_the_terminal() -> None:
    by = replace(BY, model="\x1b[31mred")
    assert "\x1b" not in tell(Account().ended(replace(DONE, provenance=by), ""))


def test_only_the_first_decision_ends_the_wait() -> None:
    first, second = decided(), replace(decided(), target=Target.CLOUD)
    account = Account().routed(first, 0.5).routed(second, 7.0)
    assert (account.decision, account.waited_s) == (second, 0.5)


@pytest.mark.parametrize(
    ("end", "whole"),
    [
        (DONE, True),
        (replace(DONE, finish_reason="length"), True),
        (replace(DONE, finish_reason="cancelled"), False),
        (Failed("worker_died", "It died."), False),
    ],
)
def test_whole_is_what_nothing_has_ended_early(end: Done | Failed, whole: bool) -> None:
    assert Account().ended(end, "").whole is whole
    assert not Account().whole


def test_a_label_finds_its_turn() -> None:
    conversation = Conversation()
    for name in ("t1", "", "t2"):
        conversation.add(Turn("q", "a", BY, account=Account().ended(DONE, name)))
    conversation.label(Label.BAD, "t1")
    conversation.label(Label.GOOD, "")
    assert [turn.account.label for turn in conversation.turns] == [Label.BAD, None, None]


def test_json_has_numbers_only_where_something_was_measured() -> None:
    here = Arm(Question().category, Target.LOCAL, "starter")
    there = Arm(Question().category, Target.CLOUD, "claude")
    known = Snapshot({here: Tally(5, 4.0, 4.0, 0.4, 30.0), there: Tally(2, 1, 1, 0.8, 60, 0.004)})
    local, cloud = as_document(decided(known))["alternatives"]  # type: ignore[misc]
    assert (local["ttft_s"], local["tokens_per_second"], local["cost"]) == (0.4, 30.0, 0.0)
    assert (cloud["ttft_s"], cloud["cost"], cloud["obstacle"]) == (0.8, 0.004, None)
    local, cloud = as_document(decided())["alternatives"]  # type: ignore[misc]
    assert local["ttft_s"] is local["tokens_per_second"] is cloud["cost"] is None


def test_what_is_not_kept_of_a_turn_from_the_history_is_not_told() -> None:
    taken_up = Account(finish="stop", provenance=BY, timings=DONE.timings, earlier="local, user")
    told = lines(taken_up)
    assert told[0] == "From the history, where it was decided so: local, user."
    assert told[1].startswith("It took 0.9 s, first token after 0.31 s, 21 tok/s")
    assert lines(replace(taken_up, timings=Timings()))[1].startswith("It was answered, 0 tokens")
    assert lines(replace(taken_up, finish=CORRECTED))[-1] == "You corrected it."
