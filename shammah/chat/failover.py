"""A turn whose answerer has failed: whether it goes on, and where. Pure.

The text so far goes along, and the next answerer adds to it. docs/ROUTING.md has the rules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shammah.bus.messages import ChatMessage, Downloading, Failed, NotAvailable, State
from shammah.router.route import Reason, RouteDecision, Target, View, Wish

RESTARTS = 2
"""For one turn. What fails a third time would fail a fourth."""

HUNG = frozenset({"worker_silent", "worker_stalled"})
"""The process is there, and must be ended before another takes its place."""

GONE = HUNG | {"worker_died", "worker_lost"}
"""The worker itself is gone; a new one may do it. (One that was stopped, was by somebody.)"""

_BROKEN = frozenset(
    {
        *("cloud_interrupted", "cloud_truncated", "cloud_timeout", "cloud_server_error"),
        *("cloud_overloaded", "cloud_rate_limited", "cloud_conflict", "cloud_unreachable"),
        "cloud_malformed",
    }
)
"""The cloud has broken off. Before any text its worker has tried again already."""

_UNABLE = frozenset(
    {
        *("internal", "generation_failed", "out_of_memory"),
        *("cloud_key_rejected", "cloud_billing", "cloud_model_unknown", "cloud_tls"),
    }
)
"""The same answerer would fail again, the other one need not."""

TOO_LONG = "context_too_long"
"""The local model has counted: Claude holds more."""


@dataclass(frozen=True, slots=True)
class Interruption:
    """A turn that has lost its answerer.

    Attributes:
        failure: how.
        decision: that which sent the question to him.
        wish: what the person asked for.
        text: what has been answered so far, by whomever.
        tied: the text must not leave this machine (then it is not empty).
        restarts: how often this turn has gone on already.
        view: how the workers are now.
        cloud: whether the gate to the cloud can be opened at all.
    """

    failure: Failed
    decision: RouteDecision
    wish: Wish
    text: str
    tied: bool
    restarts: int
    view: View
    cloud: bool


@dataclass(frozen=True, slots=True)
class Continuation:
    """Who goes on, for which reason, and what the person should read about it.

    ``wish`` is the one to route by; its ``private`` holds for the text so far, too.
    """

    target: Target
    reason: Reason
    wish: Wish
    note: str


def go_on(turn: Interruption) -> Continuation | Failed:
    """Who answers the rest; the failure itself if nobody should.

    First the other one, who is at hand; the one that has failed again if the other may not, or
    cannot, and if it is not the question's own fault.
    """
    failure, failed = turn.failure, turn.decision.target
    if turn.restarts >= RESTARTS or failure.code not in GONE | _BROKEN | _UNABLE | {TOO_LONG}:
        return failure
    for target in (_other(failed), failed):
        if _may(turn, target) and _can(turn, target):
            return _continuation(turn, target)
    return failure


def with_text(
    conversation: tuple[ChatMessage, ...], text: str, *, tied: bool
) -> tuple[ChatMessage, ...]:
    """``conversation`` with the beginning of its answer, for whoever goes on."""
    if not text:
        return conversation
    private = tied or conversation[-1].private
    return (*conversation, ChatMessage("assistant", text, private))


def _may(turn: Interruption, target: Target) -> bool:
    """Whether the person lets ``target`` answer."""
    private = turn.wish.private or turn.tied
    if target is Target.CLOUD and (private or not turn.cloud or not turn.view.cloud_configured):
        return False
    return target is turn.decision.target or turn.wish.target in (None, target)


def _can(turn: Interruption, target: Target) -> bool:
    """Whether there is a chance that ``target`` answers soon."""
    code, state = turn.failure.code, _state(turn.view, target)
    if target is turn.decision.target:
        return code in GONE or (code in _BROKEN and bool(turn.text))
    return not isinstance(state, Failed | NotAvailable | Downloading)


def _continuation(turn: Interruption, target: Target) -> Continuation:
    private = turn.wish.private or turn.tied
    reason = turn.decision.reason
    if target is not turn.decision.target:
        reason = Reason.MODEL_NOT_READY if target is Target.CLOUD else Reason.CLOUD_FAILED
        reason = Reason.CONTEXT_TOO_LONG if turn.failure.code == TOO_LONG else reason
    wish = replace(turn.wish, target=target, private=private)
    return Continuation(target, reason, wish, _note(turn, target))


def _note(turn: Interruption, target: Target) -> str:
    who = "Claude" if target is Target.CLOUD else "The local model"
    if target is turn.decision.target:
        how = "is asked to go on" if turn.text else "is asked again"
        if target is Target.LOCAL:
            how = "is started again and goes on" if turn.text else "is started again"
    else:
        how = "goes on" if turn.text else "answers instead"
    return f"{turn.failure.message} {who} {how}."


def _other(target: Target) -> Target:
    return Target.LOCAL if target is Target.CLOUD else Target.CLOUD


def _state(view: View, target: Target) -> State | None:
    return view.cloud if target is Target.CLOUD else view.local
