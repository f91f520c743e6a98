"""A cancelled answer, as its frontend has counted it."""

from __future__ import annotations

from shammah.bus.messages import Provenance, Ready, Timings, Token, Usage
from shammah.chat.cancelled import Seen, provenance
from shammah.router.route import Alternative, Arm, Category, Reason, RouteDecision, Target

BY = Provenance("inference", "small")


def test_what_came_is_counted_with_its_speed() -> None:
    times = iter([10.0, 10.5, 11.0, 11.5, 12.0])
    seen = Seen(lambda: next(times))
    for index in (1, 3, 5):
        seen.note(Token("r", index, "a"))
    ended = seen.end(BY)
    assert (ended.finish_reason, ended.usage, ended.provenance) == ("cancelled", Usage(0, 5), BY)
    assert ended.timings == Timings(ttft_s=0.5, total_s=2.0, decode_tokens_per_second=4.0)


def test_tokens_that_came_with_the_first_text_do_not_make_it_faster() -> None:
    times = iter([10.0, 12.0, 12.5, 13.0])
    seen = Seen(lambda: next(times))
    for index in (200, 204):
        seen.note(Token("r", index, "a"))
    assert seen.end(BY).timings.decode_tokens_per_second == 8.0


def test_before_the_first_token_there_is_no_speed() -> None:
    times = iter([10.0, 12.0])
    assert Seen(lambda: next(times)).end(BY).timings == Timings(total_s=2.0)


def test_who_it_was_is_known_from_the_state() -> None:
    arm = Arm(Category.OTHER, Target.LOCAL, "small", adapter="mine")
    decision = RouteDecision(
        Target.LOCAL, Reason.MODEL_READY, alternatives=(Alternative(arm, 0.9, 0.8, 0.0),)
    )
    ready = Ready(
        "small", "abc", "cpu", "float32", engine="native", stand_in=True, quantization="int8"
    )
    by = Provenance("inference", "small", "abc", "native", "cpu", "float32", True, "mine", "int8")
    assert provenance(decision, ready, "claude") == by
    assert provenance(decision, None, "claude").model == ""  # its worker is gone
    cloud = RouteDecision(Target.CLOUD, Reason.USER)
    assert provenance(cloud, ready, "claude") == Provenance("cloud", "claude", engine="anthropic")
