"""What the router decides about, and what it decides. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from shammah.bus.messages import Failed, State
from shammah.bus.record import record
from shammah.router.crisis import Danger


class Category(StrEnum):
    """The names of the original (`QueryCategory`)."""

    GREETING = "greeting"
    DEFINITION = "definition"
    HOW_TO = "how_to"
    EXPLANATION = "explanation"
    CODE = "code"
    DEBUGGING = "debugging"
    COMPARISON = "comparison"
    OPINION = "opinion"
    OTHER = "other"


class Target(StrEnum):
    LOCAL = "local"
    CLOUD = "cloud"


class Reason(StrEnum):
    """Why a target was chosen; the words stand in every answer's provenance."""

    PRIVATE = "private"
    """The question must not leave this machine."""
    CRISIS = "crisis"
    """Somebody may be in danger: the best answer there is, and whom to call."""
    USER = "user"
    """The person said which."""
    MODEL_READY = "model_ready"
    """The local model is there and good enough: private, free, knows the conversation."""
    MODEL_NOT_READY = "model_not_ready"
    """The local model is still coming up (or cannot), so Claude answers."""
    MODEL_UNKNOWN = "model_unknown"
    """Nothing is known of the local model yet: the question waits to hear. No answer has this."""
    MODEL_SILENT = "model_silent"
    """The local model's worker is there and has said nothing for too long, so Claude answers."""
    CONTEXT_TOO_LONG = "context_too_long"
    """The conversation is longer than what the local model can hold."""
    BUSY = "busy"
    """The local model would keep the question waiting for too long."""
    LOW_CONFIDENCE = "low_confidence"
    """The local model has not done well enough at questions like this one."""
    NO_MATCH = "no_match"
    """The classic policy has not seen enough local successes at questions like this one."""
    EXPLORATION = "exploration"
    """The numbers say Claude, but the local model gets another chance now and then."""
    NO_CLOUD = "no_cloud"
    """Claude would have been asked, but no key is set."""
    OFFLINE = "offline"
    """Claude would have been asked, but could not be reached a moment ago."""
    CLOUD_FAILED = "cloud_failed"
    """Claude would have been asked, but failed a moment ago."""


AUTO, OFF = "auto", "off"


@record
class Override:
    """What the person asked for: a target, whether the question is private, and the local
    model's ``adapter``: the one in service (``auto``), none (``off``), or one by its name."""

    target: Target | None = None
    private: bool = False
    adapter: str = AUTO


@record
class View:
    """The workers as the frontend sees them.

    ``None`` for ``local``: unknown, which is not the same as not ready; ``local_silent``: it has
    been for so long that no question waits for it any more. ``cloud_configured``: there is a
    key; then ``cloud`` may be ``None``, too. ``cloud_model`` is the one that would be asked,
    ``cloud_failure`` how its last answer failed, while that was a moment ago, and
    ``local_active`` how many questions of others the local model has in hand. ``adapter``: what
    the local model would answer with.
    """

    local: State | None
    cloud: State | None
    cloud_configured: bool
    cloud_model: str = ""
    cloud_failure: Failed | None = None
    local_active: int = 0
    adapter: str = ""
    local_silent: bool = False


@record
class Question:
    """What the router knows of a question: its kind, whether somebody may be in danger, and
    how many ``tokens`` the whole conversation with it has, roughly. ``chance`` is the number
    from 0 to 1 that was drawn for it; 1 explores nothing."""

    category: Category = Category.OTHER
    danger: Danger | None = None
    tokens: int = 0
    sums: bool = False
    chance: float = 1.0


@record
class Arm:
    """Who may answer a kind of question: what success is counted for.

    A local model with another quantisation or adapter is another one. ``model`` is empty while
    it is not known.
    """

    category: Category
    target: Target
    model: str
    quantization: str = ""
    adapter: str = ""

    @property
    def backend(self) -> Arm:
        """The same for every kind of question."""
        return replace(self, category=Category.OTHER)


@record
class Alternative:
    """What was to be expected of one backend at the time of the decision.

    ``quality`` is the expected share of good answers, ``bound`` what it is at least (both 0 to
    1), ``trust`` that bound with the benefit of the doubt, which decides. ``evidence`` is the
    weight of the labels behind them, in answers. ``ttft_s`` (seconds), ``tokens_per_second`` and
    ``cost`` (US dollars) are 0 while nothing was measured. ``obstacle``: why it could not be
    asked at all.
    """

    arm: Arm
    quality: float
    bound: float
    evidence: float
    ttft_s: float = 0.0
    tokens_per_second: float = 0.0
    cost: float = 0.0
    obstacle: Reason | None = None
    trust: float = 0.0


@dataclass(frozen=True, slots=True)
class RouteDecision:
    """``wait``: the target is not ready; show its progress and send the question then.

    ``alternatives`` are the local model and Claude, as they looked.
    """

    target: Target
    reason: Reason
    wait: bool = False
    question: Question = field(default_factory=Question)
    alternatives: tuple[Alternative, ...] = ()

    def alternative(self, target: Target) -> Alternative | None:
        """What was expected of ``target``."""
        return next((one for one in self.alternatives if one.arm.target is target), None)

    @property
    def adapter(self) -> str:
        """What the target answers with beside its model; empty: nothing."""
        chosen = self.alternative(self.target)
        return chosen.arm.adapter if chosen else ""
