"""The decision, over every view and every wish."""

from __future__ import annotations

import itertools

import pytest

from shammah.bus.messages import (
    Downloading,
    Failed,
    Initializing,
    Loading,
    NotAvailable,
    Ready,
    State,
)
from shammah.router.decision import NO_KEY, Reason, RouteDecision, Target, View, Wish, decide

READY, CLAUDE = Ready("starter"), Ready("claude")
COMING = (None, Initializing(), Downloading("m"), Loading("m", "weights"))
LOST_LOCAL = (Failed("internal", "Broken.", "Look."), NotAvailable("No model.", "Fetch it."))
LOST_CLOUD = (Failed("cloud", "No cloud.", ""), NotAvailable("No key.", ""))

LOCAL_STATES: tuple[State | None, ...] = (*COMING, READY, *LOST_LOCAL)
CLOUD_STATES: tuple[State | None, ...] = (*COMING, CLAUDE, *LOST_CLOUD)

VIEWS = [View(local, None, False) for local in LOCAL_STATES] + [
    View(local, cloud, True) for local, cloud in itertools.product(LOCAL_STATES, CLOUD_STATES)
]
WISHES = [Wish(target, private) for target in (None, *Target) for private in (False, True)]

WAIT = True


def failure_of(state: State | None) -> Failed | None:
    """What is said of a worker that cannot answer, written once more to compare with."""
    if isinstance(state, NotAvailable):
        return Failed("not_available", state.reason, state.hint)
    return state if isinstance(state, Failed) else None


@pytest.mark.parametrize("wish", WISHES, ids=str)
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_every_view_and_wish_has_one_sound_answer(view: View, wish: Wish) -> None:
    decided = decide(view, wish)
    local_lost = failure_of(view.local) is not None
    cloud_usable = view.cloud_configured and failure_of(view.cloud) is None
    match decided:
        case RouteDecision(Target.CLOUD, reason, wait):
            assert view.cloud_configured
            assert not wish.private
            assert wish.target is not Target.LOCAL
            assert not wait
            assert reason in (Reason.USER, Reason.MODEL_NOT_READY)
            if reason is Reason.MODEL_NOT_READY:
                assert cloud_usable
                assert view.local != READY
        case RouteDecision(Target.LOCAL, reason, wait):
            assert not local_lost
            assert wait is (view.local != READY)
            assert wish.private or wish.target is not Target.CLOUD
            assert (reason is Reason.PRIVATE) is wish.private
            if reason is Reason.NO_CLOUD:
                assert not cloud_usable
        case Failed():
            if decided is NO_KEY:
                assert wish.target is Target.CLOUD
                assert not view.cloud_configured
            else:
                assert local_lost
                assert not cloud_usable or wish.private or wish.target is Target.LOCAL


PLAIN = Wish()


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (View(READY, None, False), RouteDecision(Target.LOCAL, Reason.MODEL_READY)),
        (View(READY, CLAUDE, True), RouteDecision(Target.LOCAL, Reason.MODEL_READY)),
        (View(READY, LOST_CLOUD[0], True), RouteDecision(Target.LOCAL, Reason.MODEL_READY)),
        (View(None, None, False), RouteDecision(Target.LOCAL, Reason.NO_CLOUD, WAIT)),
        (View(None, None, True), RouteDecision(Target.CLOUD, Reason.MODEL_NOT_READY)),
        (View(COMING[3], CLAUDE, True), RouteDecision(Target.CLOUD, Reason.MODEL_NOT_READY)),
        (View(COMING[3], LOST_CLOUD[0], True), RouteDecision(Target.LOCAL, Reason.NO_CLOUD, WAIT)),
        (View(LOST_LOCAL[0], CLAUDE, True), RouteDecision(Target.CLOUD, Reason.MODEL_NOT_READY)),
        (View(LOST_LOCAL[0], None, False), LOST_LOCAL[0]),
        (View(LOST_LOCAL[1], None, False), Failed("not_available", "No model.", "Fetch it.")),
        (View(LOST_LOCAL[0], LOST_CLOUD[0], True), LOST_CLOUD[0]),
        (View(LOST_LOCAL[0], LOST_CLOUD[1], True), Failed("not_available", "No key.", "")),
    ],
)  # fmt: skip
def test_without_a_wish(view: View, expected: RouteDecision | Failed) -> None:
    assert decide(view, PLAIN) == expected


def test_a_private_question_stays_here_whatever_else_was_wished() -> None:
    for wish in (Wish(target, private=True) for target in (None, *Target)):
        view = View(COMING[1], CLAUDE, True)
        assert decide(view, wish) == RouteDecision(Target.LOCAL, Reason.PRIVATE, WAIT)
        assert decide(View(LOST_LOCAL[0], CLAUDE, True), wish) == LOST_LOCAL[0]


def test_a_wish_for_the_local_model_waits_for_it_though_claude_could_answer() -> None:
    view = View(COMING[2], CLAUDE, True)
    assert decide(view, Wish(Target.LOCAL)) == RouteDecision(Target.LOCAL, Reason.USER, WAIT)


def test_a_wish_for_the_cloud_needs_a_key() -> None:
    assert decide(View(READY, None, False), Wish(Target.CLOUD)) is NO_KEY
    view = View(READY, None, True)
    assert decide(view, Wish(Target.CLOUD)) == RouteDecision(Target.CLOUD, Reason.USER)


def test_the_values_of_target_and_reason_are_what_json_shows() -> None:
    assert [target.value for target in Target] == ["local", "cloud"]
    assert {reason.value for reason in Reason} == {
        "model_ready", "model_not_ready", "no_cloud", "user", "private",
    }  # fmt: skip
