"""Failover: which backend continues a turn when one has failed, if any. Pure.

The text so far goes along, and the next backend adds to it. docs/ROUTING.md has the rules.
"""

from __future__ import annotations

from dataclasses import replace

from shammah.bus.messages import ChatMessage, Downloading, Failed, NotAvailable
from shammah.bus.record import record
from shammah.chat.conversation import TurnInProgress
from shammah.router.route import Override, Reason, Target, View

RESTARTS = 2
"""For one turn. What fails a third time would fail a fourth."""

HUNG = frozenset({"worker_silent", "worker_stalled"})
"""The process still runs, and must be ended before another takes its place."""

GONE = HUNG | {"worker_died", "worker_lost"}
"""The worker itself is gone; a new one may do it. (A stopped one was stopped on purpose.)"""

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
        "server_busy",
        "server_interrupted",
        "server_unreachable",
    }
)
"""The cloud broke off, or the server that is the local model. Before any text the cloud worker has
already tried again."""

_UNABLE = frozenset(
    {
        "cloud_billing",
        "cloud_key_rejected",
        "cloud_model_unknown",
        "cloud_tls",
        "generation_failed",
        "internal",
        "out_of_memory",
        "schema_not_enforced",
        "server_malformed",
        "server_refused",
    }
)
"""The same backend would fail again, the other one need not."""

TOO_LONG = "context_too_long"
"""The local model has counted the tokens; Claude holds more."""


@record
class Failover:
    """Which backend continues, why, and what the person should read about it (empty: nothing).

    ``override`` is the one to route by: it has a target; ``private`` covers the text so far.
    """

    override: Override
    reason: Reason
    note: str


def fail_over(
    turn: TurnInProgress, failure: Failed, view: View, *, tied: bool, openable: bool
) -> Failover | Failed:
    """Choose the backend for the rest of a turn; return the failure itself if there is none.

    First the other backend, which is at hand; then the one that failed, if the other may not or
    cannot answer and the question itself is not at fault.

    Args:
        turn: its last decision names the backend that failed.
        failure: how it failed.
        view: how the workers are now.
        tied: the text so far must not leave this machine (then it is not empty).
        openable: whether the gate to the cloud can be opened at all.
    """
    assert turn.decision is not None
    if turn.restarts >= RESTARTS or failure.code not in GONE | _BROKEN | _UNABLE | {TOO_LONG}:
        return failure
    failed, reason, override = turn.decision.target, turn.decision.reason, turn.override
    private = override.private or tied
    for target in sorted(Target, key=lambda one: one is failed):
        if target is Target.CLOUD and (private or not openable or not view.cloud_configured):
            continue
        if target is not failed and override.target not in (None, target):
            continue
        if _can(turn, failure, view, target):
            if target is not failed and failure.code == TOO_LONG:
                reason = Reason.CONTEXT_TOO_LONG
            elif target is not failed:
                local = failed is Target.LOCAL
                reason = Reason.MODEL_NOT_READY if local else Reason.CLOUD_FAILED
            override = replace(override, target=target, private=private)
            return Failover(override, reason, _note(turn, failure, target))
    trims = turn.trims_nothing and not turn.prompt.whole
    if failure.code == TOO_LONG and trims:  # then without its earliest turns
        return Failover(replace(override, target=Target.LOCAL), reason, "")
    return failure


def with_text(
    conversation: tuple[ChatMessage, ...], text: str, *, tied: bool
) -> tuple[ChatMessage, ...]:
    """``conversation`` with the beginning of its answer, for the backend that continues."""
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
    backend = "Claude" if target is Target.CLOUD else "The local model"
    if target is not turn.decision.target:
        how = "continues" if turn.text else "answers instead"
    elif target is Target.LOCAL:
        how = "restarts and continues" if turn.text else "restarts"
    else:
        how = "is asked to continue" if turn.text else "is asked again"
    return f"{failure.message} {backend} {how}."
