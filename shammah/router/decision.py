"""The decision, first version. Pure: states in, a decision out.

Order: what must stay here, what the person asked for, who is ready.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from shammah.bus.messages import Failed, NotAvailable, Ready, State


class Target(StrEnum):
    LOCAL = "local"
    CLOUD = "cloud"


class Reason(StrEnum):
    """Why a target was chosen; the words stand in every answer's provenance."""

    MODEL_READY = "model_ready"
    """The local model is there: private, free, and knows the conversation."""
    MODEL_NOT_READY = "model_not_ready"
    """The local model is still coming up (or cannot), so Claude answers."""
    NO_CLOUD = "no_cloud"
    """No key is set, so the question waits for the local model."""
    USER = "user"
    """The person said which."""
    PRIVATE = "private"
    """The question must not leave this machine."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the person asked for: a target, and whether the question is private."""

    target: Target | None = None
    private: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """The workers as the frontend sees them.

    ``None`` for ``local``: nothing heard yet. ``cloud_configured``: there is a key; then
    ``cloud`` may be ``None``, too.
    """

    local: State | None
    cloud: State | None
    cloud_configured: bool


@dataclass(frozen=True, slots=True)
class RouteDecision:
    """``wait``: the target is not ready; show its progress and send the question then."""

    target: Target
    reason: Reason
    wait: bool = False


NO_KEY = Failed(
    "cloud_not_configured",
    "Claude cannot be asked: no API key is set.",
    "Set ANTHROPIC_API_KEY, or cloud.api_key in config.toml.",
)


def decide(view: View, wish: Wish) -> RouteDecision | Failed:
    """Who answers now, or why nobody can."""
    if wish.private:
        return _local(view, Reason.PRIVATE)
    if wish.target is Target.LOCAL:
        return _local(view, Reason.USER)
    if wish.target is Target.CLOUD:
        return RouteDecision(Target.CLOUD, Reason.USER) if view.cloud_configured else NO_KEY
    if isinstance(view.local, Ready):
        return RouteDecision(Target.LOCAL, Reason.MODEL_READY)
    if view.cloud_configured and _inability(view.cloud) is None:
        return RouteDecision(Target.CLOUD, Reason.MODEL_NOT_READY)
    decision = _local(view, Reason.NO_CLOUD)
    if isinstance(decision, Failed) and view.cloud_configured:
        return _inability(view.cloud) or decision
    return decision


def _local(view: View, reason: Reason) -> RouteDecision | Failed:
    """The local model, now or when it is ready; its own words if it never will be."""
    failure = _inability(view.local)
    if failure is not None:
        return failure
    return RouteDecision(Target.LOCAL, reason, wait=not isinstance(view.local, Ready))


def _inability(state: State | None) -> Failed | None:
    match state:
        case Failed():
            return state
        case NotAvailable(reason, hint):
            return Failed("not_available", reason, hint)
    return None
