"""What ``/why`` makes of a turn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shammah.bus.messages import Done, Failed, Provenance, Ready, Timings, Usage
from shammah.chat.conversation import Conversation, Turn
from shammah.chat.summary import describe_answer, describe_turn
from shammah.router.decision import Override, RouteDecision, Target, View, decide
from shammah.router.explanation import as_document
from shammah.router.route import Arm, Question
from shammah.router.statistics import Label, Snapshot, Tally
from shammah.settings.model import RouterSettings

BY = Provenance(
    *("inference", "starter", "0123456789abcdef", "native", "cpu", "float32"), quantization="int8"
)
DONE = Done("r", "stop", Usage(20, 7), Timings(0.0, 0.31, 0.9, 0.0, 21.4), BY)


def decided(snapshot: Snapshot | None = None) -> RouteDecision:
    view = View(Ready("starter", context_length=4096), Ready("claude"), True, "claude")
    decision = decide(Question(), Override(), view, snapshot or Snapshot(), RouterSettings())
    assert isinstance(decision, RouteDecision)
    return decision


def lines(end: Done | Failed | None = DONE, **more: Any) -> list[str]:
    return describe_turn(Turn("q", "a", end=end, **more)).splitlines()


def test_an_answer_is_told_with_its_decision_and_its_course() -> None:
    told = lines(decision=decided(), waited_s=1.25)
    assert told[0].startswith("Answered locally: ")
    assert told[2].startswith("  local (starter): estimated 30% good answers")
    assert told[4].startswith("  cloud (claude): estimated 95% good answers")
    assert "cost unknown" in told[5]
    assert told[6] == (
        "Queued 1.2 s, first token 0.31 s, 0.9 s in total, 21 tok/s, 20 tokens in, 7 out."
    )
    numbers = "int8 weights computed in float32"
    assert told[7] == f"Model: starter at 0123456789ab (native, cpu, {numbers})."
    assert len(told) == 8


def test_what_the_model_has_not_seen_is_told() -> None:
    done = replace(DONE, usage=replace(DONE.usage, unseen=14, messages=37))
    assert lines(done)[-1] == "The first 14 of 37 messages no longer fit and were not seen."


def test_what_came_from_the_disk_is_told() -> None:
    done = replace(DONE, usage=replace(DONE.usage, reused_tokens=18, restored_tokens=16))
    assert ", 7 out, 16 tokens read from disk instead of computed." in "\n".join(lines(done))
    assert " · resumed from disk" in describe_answer(done, decided())
    assert "disk" not in describe_answer(DONE, decided())


def test_a_failure_is_told_with_its_decision() -> None:
    told = lines(Failed("cloud_overloaded", "It is overloaded.", "Ask later."), decision=decided())
    assert told[0].startswith("Answered locally")
    assert told[-1] == "Failed: It is overloaded. Ask later."


def test_a_question_that_nobody_was_asked_is_told() -> None:
    assert lines(Failed("not_available", "No model.", "Fetch it.")) == [
        "Not sent to any model.",
        "Failed: No model. Fetch it.",
    ]
    cancelled = lines(Failed("cancelled", "Cancelled."))
    assert cancelled == ["Not sent to any model.", "You cancelled it."]


@pytest.mark.parametrize("label", [one for one in Label if not one.startswith(("text", "broken"))])
def test_what_the_person_said_is_told(label: Label) -> None:
    assert lines(decision=decided(), label=label)[-1].startswith("You ")


def test_the_adapter_that_answered_is_told() -> None:
    by = Provenance("inference", "starter", adapter="orrin")
    told = lines(replace(DONE, provenance=by))
    assert "Model: starter with the adapter orrin." in told


def test_a_server_s_words_cannot_steer_the_terminal() -> None:
    by = replace(BY, model="\x1b[31mred")
    assert "\x1b" not in "".join(lines(replace(DONE, provenance=by)))


def test_a_label_finds_its_turn() -> None:
    conversation = Conversation()
    for name in ("t1", "", "t2"):
        conversation.add(Turn("q", "a", end=DONE, outcome=name))
    conversation.label(Label.BAD, "t1")
    conversation.label(Label.GOOD, "")
    assert [turn.label for turn in conversation.turns] == [Label.BAD, None, None]


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
    stored = ("local", "user")
    done = Done("", "stop", Usage(), DONE.timings, BY)
    told = lines(done, stored=stored)
    assert told[0] == "From the history: local, user."
    assert told[1].startswith("First token 0.31 s, 0.9 s in total, 21 tok/s")
    untimed = lines(replace(done, timings=Timings()), stored=stored)
    assert untimed[1].startswith("0 tokens in")
    assert lines(done, stored=stored, given="b")[-1] == "You corrected it."
    assert lines(Failed("failed", ""), stored=stored) == told[:1]
