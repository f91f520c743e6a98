"""Failover: who continues a turn when one has failed, if anybody does. Pure.

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
        "server_error",
        "server_interrupted",
        "server_unreachable",
    }
)
"""The cloud broke off, or a server. Before any text the cloud worker has already tried again."""

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
"""The local model has counted the tokens; the cloud holds more."""


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
    """Choose who answers the rest of a turn; return the failure itself if there is nobody.

    First others, who are at hand: a server, the local model, the cloud; then the one that failed,
    if no other may or can answer and the question itself is not at fault.

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
    last = (failed, turn.decision.server)
    others = [*((Target.SERVER, one.name) for one in view.servers), (Target.LOCAL, "")]
    others = [one for one in [*others, (Target.CLOUD, "")] if one != last]
    for target, server in [*others, last]:
        if target is Target.CLOUD and (private or not openable or not view.cloud_configured):
            continue
        if target is Target.SERVER and not _may(turn, view, server, private=private):
            continue
        other = (target, server) != last
        if other and override.target is not None and (target, server) != _wished(override):
            continue
        if other and not _can(view, target, server):
            continue
        if not other and not (failure.code in GONE or (failure.code in _BROKEN and turn.text)):
            continue
        if other:
            reason = _reason(failed, failure)
        override = replace(override, target=target, private=private, server=server)
        return Failover(override, reason, _note(turn, failure, view, target, server))
    trims = turn.trims_nothing and not turn.prompt.whole
    if failure.code == TOO_LONG and trims:  # then without its earliest turns
        return Failover(replace(override, target=Target.LOCAL, server=""), reason, "")
    return failure


def _wished(override: Override) -> tuple[Target | None, str]:
    return override.target, override.server


def _may(turn: TurnInProgress, view: View, server: str, *, private: bool) -> bool:
    """Whether a server may have the question and the text so far. Somebody in danger is not passed
    on to one."""
    one = view.server(server)
    return one is not None and (one.private or not private) and turn.question.danger is None


def _reason(failed: Target, failure: Failed) -> Reason:
    if failure.code == TOO_LONG:
        return Reason.CONTEXT_TOO_LONG
    if failed is Target.CLOUD:
        return Reason.CLOUD_FAILED
    server = failed is Target.SERVER or failure.code.startswith("server_")
    return Reason.SERVER_FAILED if server else Reason.MODEL_NOT_READY


def with_text(
    conversation: tuple[ChatMessage, ...], text: str, *, tied: bool
) -> tuple[ChatMessage, ...]:
    """``conversation`` with the beginning of its answer, for the backend that continues."""
    if not text:
        return conversation
    private = tied or conversation[-1].private
    return (*conversation, ChatMessage("assistant", text, private))


def _can(view: View, target: Target, server: str) -> bool:
    """Whether there is a chance that another backend answers soon."""
    if target is Target.SERVER:
        one = view.server(server)
        return one is not None and one.able
    state = view.cloud if target is Target.CLOUD else view.local
    return not isinstance(state, Failed | NotAvailable | Downloading)


def _note(turn: TurnInProgress, failure: Failed, view: View, target: Target, server: str) -> str:
    decision = turn.decision
    assert decision is not None
    backend = {
        Target.CLOUD: view.cloud_name,
        Target.SERVER: f"The server {server}",
        Target.LOCAL: "The local model",
    }[target]
    if (target, server) != (decision.target, decision.server):
        how = "continues" if turn.text else "answers instead"
    elif target is Target.LOCAL and failure.code in GONE:
        how = "restarts and continues" if turn.text else "restarts"
    else:
        how = "is asked to continue" if turn.text else "is asked again"
        # The failure has named the server.
        backend = "It" if failure.code.startswith("server_") else backend
    return f"{failure.message} {backend} {how}."
