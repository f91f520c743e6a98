"""A question on its way, and the turn that becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from shammah.bus.messages import Done, Failed, Provenance, Ready, Timings, Token, Usage
from shammah.chat.conversation import Conversation, Prompt, Step, Turn, TurnInProgress, origin
from shammah.chat.summary import describe_empty
from shammah.privacy import Mark
from shammah.router.route import Alternative, Arm, Category, Reason, RouteDecision, Target
from shammah.router.statistics import Label
from shammah.settings.model import Settings

BY = Provenance("inference", "small")
LOCAL = RouteDecision(Target.LOCAL, Reason.MODEL_READY)
CLOUD = RouteDecision(Target.CLOUD, Reason.MODEL_NOT_READY)
TOKENS = (Token("r", 1, "hm", reasoning=True), Token("r", 2, "half"), Token("r", 3, " said"))


def times(*seconds: float) -> Callable[[], float]:
    """A clock that shows these, and the last of them for ever."""
    left = list(seconds)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def fed(steps: Iterable[Step], clock: Callable[[], float] | None = None) -> TurnInProgress:
    turn = TurnInProgress(Prompt("question"), Mark(), clock=clock or times(0.0))
    turn.send()
    for step in steps:
        turn.feed(step)
    return turn


def done(reason: str) -> Done:
    return Done("r", reason, Usage(3, 2), Timings(0.5), BY)


def test_the_text_is_what_was_said_and_not_what_was_thought() -> None:
    turn = fed((LOCAL, *TOKENS, done("stop"))).turn()
    assert (turn.question, turn.answer) == ("question", "half said")
    assert turn.thoughts == "hm"
    assert turn.local
    assert (turn.provenance, turn.usage, turn.timings) == (BY, Usage(3, 2), Timings(0.5))


def test_a_turn_is_the_local_models_if_any_of_it_is() -> None:
    assert fed((LOCAL, Token("r", 1, "a"), CLOUD, Token("r", 1, "b"))).local
    assert not fed((LOCAL, Token("r", 1, "a", reasoning=True), CLOUD, Token("r", 1, "b"))).local
    assert not fed([Failed("busy", "Busy.")]).turn().local


def test_a_turn_is_foreign_if_any_of_it_is_anothers() -> None:
    assert fed((CLOUD, Token("r", 1, "a"), LOCAL, Token("r", 1, "b"))).turn().foreign
    assert not fed((CLOUD, LOCAL, Token("r", 1, "a"))).turn().foreign


def test_only_the_first_decision_ends_the_wait() -> None:
    turn = fed((LOCAL, CLOUD), times(0.0, 0.0, 0.5, 7.0))
    assert (turn.decision, turn.waited_s) == (CLOUD, 0.5)


@pytest.mark.parametrize(
    ("end", "finish", "complete", "whole"),
    [
        (done("stop"), "stop", True, True),
        (done("length"), "length", True, True),
        (done("cancelled"), "cancelled", False, False),
        (done("timeout"), "timeout", False, True),
        (Failed("worker_died", "It died."), "failed", False, False),
        (Failed("cancelled", "Cancelled."), "cancelled", False, False),
        (None, "left", False, False),
    ],
)
def test_how_it_ended(end: Done | Failed | None, finish: str, complete: bool, whole: bool) -> None:
    turn = fed((LOCAL, *TOKENS, *([end] if end else []))).turn()
    assert (turn.finish, turn.complete, turn.whole) == (finish, complete, whole)
    assert turn.answer == "half said"
    cancelled = isinstance(end, Done) and finish == "cancelled"
    assert turn.label is (Label.CANCEL if cancelled else None)


def test_a_correction_is_whole_and_of_what_was_given_first() -> None:
    given = fed((LOCAL, *TOKENS, done("cancelled"))).turn()
    turn = given.correct("one", private=False).correct("two", private=True)
    assert (turn.answer, turn.given, turn.private) == ("two", "half said", True)
    assert (turn.finish, turn.complete, turn.whole) == ("corrected", True, True)
    assert turn.key != given.key


@pytest.mark.parametrize("said", ["", " \n"])
def test_without_text_is_no_answer(said: str) -> None:
    steps = (LOCAL, Token("r", 1, "Hm", reasoning=True), Token("r", 2, said))
    empty = describe_empty(fed((*steps, done("length"))).turn())
    assert empty is not None
    assert "still thinking" in empty.message


def test_what_has_text_or_was_cancelled_is_not_empty() -> None:
    assert describe_empty(fed((LOCAL, *TOKENS, done("stop"))).turn()) is None
    assert describe_empty(fed((LOCAL, done("cancelled"))).turn()) is None


def test_what_is_private_stays_so() -> None:
    secret = TurnInProgress(Prompt("q"), Mark(True))
    assert secret.override.private
    assert secret.turn().private
    assert TurnInProgress(Prompt("q"), Mark()).turn(private=True).private


def test_the_rest_has_the_room_that_is_left() -> None:
    turn = TurnInProgress(Prompt("q", max_new_tokens=10), Mark())
    turn.feed(LOCAL)
    assert turn.room == 10
    turn.feed(Token("r", 8, "a"))
    assert turn.room == 2
    turn.send()
    turn.feed(Token("r", 5, "b"))
    assert (turn.tokens, turn.room) == (13, 1)


def test_what_came_is_counted_with_its_speed() -> None:
    steps = [Token("r", index, "a") for index in (1, 3, 5)]
    turn = fed(steps, times(0.0, 10.0, 10.5, 11.0, 11.5, 12.0))
    ended = turn.cancelled(BY)
    assert (ended.finish_reason, ended.usage, ended.provenance) == ("cancelled", Usage(0, 5), BY)
    assert ended.timings == Timings(ttft_s=0.5, total_s=2.0, decode_tokens_per_second=4.0)


def test_tokens_that_came_with_the_first_text_do_not_make_it_faster() -> None:
    steps = [Token("r", index, "a") for index in (200, 204)]
    turn = fed(steps, times(0.0, 10.0, 12.0, 12.5, 13.0))
    assert turn.cancelled(BY).timings.decode_tokens_per_second == 8.0


def test_before_the_first_token_there_is_no_speed() -> None:
    turn = fed((), times(0.0, 10.0, 12.0))
    assert turn.cancelled(BY).timings == Timings(total_s=2.0)


def test_only_the_last_who_was_asked_counts_in_a_cancelled_answer() -> None:
    turn = fed([Token("r", 7, "a")])
    turn.send()
    turn.feed(Token("r", 1, "b"))
    assert turn.cancelled(BY).usage == Usage(0, 1)


def test_who_it_was_is_known_from_the_state() -> None:
    arm = Arm(Category.OTHER, Target.LOCAL, "small", adapter="mine")
    decision = RouteDecision(
        Target.LOCAL, Reason.MODEL_READY, alternatives=(Alternative(arm, 0.9, 0.8, 0.0),)
    )
    ready = Ready(
        "small", "abc", "cpu", "float32", engine="native", fallback=True, quantization="int8"
    )
    by = Provenance("inference", "small", "abc", "native", "cpu", "float32", True, "mine", "int8")
    settings = Settings(Path())
    assert origin(decision, ready, settings) == by
    assert origin(decision, None, settings).model == ""  # its worker is gone
    cloud = RouteDecision(Target.CLOUD, Reason.USER)
    claude = Provenance("cloud", settings.cloud.model, engine="anthropic")
    assert origin(cloud, ready, settings) == claude


def test_what_a_server_says_is_no_secret_if_it_was_sent_none() -> None:
    turn = TurnInProgress(Prompt("q"), Mark())
    turn.send(blind=True)
    turn.feed(RouteDecision(Target.SERVER, Reason.USER, who="box"))
    turn.feed(Token("r", 1, "a"))
    talk = Conversation("", [Turn("old", "secret", private=True)])
    assert not talk.add(turn.turn()).private
    assert turn.turn().local  # the rules apply to it
    turn.send()  # and the local model goes on
    assert talk.add(turn.turn()).private
