"""A turn whose backend has failed: whether it goes on, and where. Pure.

The text so far goes along, and the next backend adds to it. docs/ROUTING.md has the rules.
"""

from __future__ import annotations

from dataclasses import replace

from shammah.bus.messages import ChatMessage, Downloading, Failed, NotAvailable
from shammah.bus.record import record
from shammah.chat.turn import TurnInProgress
from shammah.router.route import Override, Reason, Target, View

RESTARTS = 2
"""For one turn. What fails a third time would fail a fourth."""

HUNG = frozenset({"worker_silent", "worker_stalled"})
"""The process is there, and must be ended before another takes its place."""

GONE = HUNG | {"worker_died", "worker_lost"}
"""The worker itself is gone; a new one may do it. (One that was stopped, was by somebody.)"""

_BROKEN = frozenset(
    {
        "cloud_conflict",
        "cloud_interrupted",
        "cloud_malformed",
        "cloud_overloaded",
        "cloud_rate_limited",
        "cloud_server_error",
        "cloud_timeout",
        "cloud_truncated",
        "cloud_unreachable",
    }
)
"""The cloud has broken off. Before any text its worker has tried again already."""

_UNABLE = frozenset(
    {
        "cloud_billing",
        "cloud_key_rejected",
        "cloud_model_unknown",
        "cloud_tls",
        "generation_failed",
        "internal",
        "out_of_memory",
    }
)
"""The same backend would fail again, the other one need not."""

TOO_LONG = "context_too_long"
"""The local model has counted: Claude holds more."""


@record
class Failover:
    """Whom to ask for the rest, for which reason, and what the person should read about it.

    ``override`` is the one to route by: it has a target, and its ``private`` holds for the text so
    far, too.
    """

    override: Override
    reason: Reason
    note: str


def fail_over(
    turn: TurnInProgress, failure: Failed, view: View, *, tied: bool, openable: bool
) -> Failover | Failed:
    """Who answers the rest; the failure itself if nobody should.

    First the other one, who is at hand; the one that has failed again if the other may not, or
    cannot, and if it is not the question's own fault.

    Args:
        turn: what has lost whom it was sent to.
        failure: how.
        view: how the workers are now.
        tied: the text so far must not leave this machine (then it is not empty).
        openable: whether the gate to the cloud can be opened at all.
    """
    assert turn.decision is not None
    if turn.restarts >= RESTARTS or failure.code not in GONE | _BROKEN | _UNABLE | {TOO_LONG}:
        return failure
    failed, override = turn.decision.target, turn.override
    private = override.private or tied
    for target in (_other(failed), failed):
        if target is Target.CLOUD and (private or not openable or not view.cloud_configured):
            continue
        if target is not failed and override.target not in (None, target):
            continue
        if _can(turn, failure, view, target):
            reason = turn.decision.reason
            if target is not failed:
                reason = _REASONS.get(failure.code, _OF_THE_OTHER[target])
            override = replace(override, target=target, private=private)
            return Failover(override, reason, _note(turn, failure, target))
    if failure.code == TOO_LONG and turn.trims_nothing:  # then without its earliest turns
        return Failover(replace(override, target=Target.LOCAL), turn.decision.reason, "")
    return failure


_OF_THE_OTHER = {Target.CLOUD: Reason.MODEL_NOT_READY, Target.LOCAL: Reason.CLOUD_FAILED}
_REASONS = {TOO_LONG: Reason.CONTEXT_TOO_LONG}


def with_text(
    conversation: tuple[ChatMessage, ...], text: str, *, tied: bool
) -> tuple[ChatMessage, ...]:
    """``conversation`` with the beginning of its answer, for whoever goes on."""
    if not text:
        return conversation
    private = tied or conversation[-1].private
    return (*conversation, ChatMessage("assistant", text, private))


def _can(turn: TurnInProgress, failure: Failed, view: View, target: Target) -> bool:
    """Whether there is a chance that ``target`` answers soon."""
    assert turn.decision is not None
    if target is turn.decision.target:
        return failure.code in GONE or (failure.code in _BROKEN and bool(turn.text))
    state = view.cloud if target is Target.CLOUD else view.local
    return not isinstance(state, Failed | NotAvailable | Downloading)


def _note(turn: TurnInProgress, failure: Failed, target: Target) -> str:
    assert turn.decision is not None
    who = "Claude" if target is Target.CLOUD else "The local model"
    if target is not turn.decision.target:
        how = "goes on" if turn.text else "answers instead"
    elif target is Target.LOCAL:
        how = "is started again and goes on" if turn.text else "is started again"
    else:
        how = "is asked to go on" if turn.text else "is asked again"
    return f"{failure.message} {who} {how}."


def _other(target: Target) -> Target:
    return Target.LOCAL if target is Target.CLOUD else Target.CLOUD
