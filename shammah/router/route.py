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
    SERVER = "server"
    """One of those beside the local model."""
    CLOUD = "cloud"


class Reason(StrEnum):
    """Why a target was chosen; docs/ROUTING.md says what each means."""

    PRIVATE = "private"
    CRISIS = "crisis"
    USER = "user"
    MODEL_READY = "model_ready"
    MODEL_NOT_READY = "model_not_ready"
    MODEL_UNKNOWN = "model_unknown"
    MODEL_SILENT = "model_silent"
    CONTEXT_TOO_LONG = "context_too_long"
    BUSY = "busy"
    LOW_CONFIDENCE = "low_confidence"
    NO_MATCH = "no_match"
    EXPLORATION = "exploration"
    SERVER_BETTER = "server_better"
    SERVER_FAILED = "server_failed"
    NO_CLOUD = "no_cloud"
    OFFLINE = "offline"
    CLOUD_FAILED = "cloud_failed"


AUTO, OFF = "auto", "off"


@record
class Override:
    """What the person asked for: a target (``server``: which), privacy, and the local model's
    ``adapter``: the active one (``auto``), none (``off``), or a name."""

    target: Target | None = None
    private: bool = False
    adapter: str = AUTO
    server: str = ""


@record
class Beside:
    """A server beside the local model. ``why`` it cannot be asked, in a sentence; empty: it can.
    ``private``: it may have private questions. ``failed``: its last answer did, a moment ago."""

    name: str
    model: str = ""
    context_length: int = 0
    private: bool = False
    why: str = ""
    failed: bool = False

    @property
    def able(self) -> bool:
        return not self.why and not self.failed


@record
class View:
    """The workers as the frontend sees them.

    ``local`` of ``None``: unknown, which is not the same as not ready; ``local_silent``: for so
    long that no question waits for it. ``cloud_configured``: there is a key. ``cloud_failure``: how
    its last answer failed, if recently. ``local_active``: how many questions of others the local
    model is answering; ``adapter``: what it would answer with. ``cloud_name``: who the cloud is.
    ``servers_unknown``: nothing has been heard of the servers yet, but soon will be.
    """

    local: State | None
    cloud: State | None
    cloud_configured: bool
    cloud_model: str = ""
    cloud_failure: Failed | None = None
    local_active: int = 0
    adapter: str = ""
    local_silent: bool = False
    cloud_name: str = "Claude"
    servers: tuple[Beside, ...] = ()
    servers_unknown: bool = False

    def server(self, name: str) -> Beside | None:
        return next((one for one in self.servers if one.name == name), None)


@record
class Question:
    """What the router knows of a question: its kind, whether someone may be in danger, about how
    many ``tokens`` the conversation with it has, and whether it is arithmetic. ``chance`` is a
    random number from 0 to 1; 1 explores nothing."""

    category: Category = Category.OTHER
    danger: Danger | None = None
    tokens: int = 0
    sums: bool = False
    chance: float = 1.0


@record
class Arm:
    """A backend for a kind of question: what success is counted for. Another quantisation or
    adapter makes another arm; ``model`` is empty while unknown, and of a server ``NAME/MODEL``."""

    category: Category
    target: Target
    model: str
    quantization: str = ""
    adapter: str = ""

    @property
    def server(self) -> str:
        """The name of the server; empty: it is none."""
        return self.model.partition("/")[0] if self.target is Target.SERVER else ""

    @property
    def backend(self) -> Arm:
        """The same for every kind of question."""
        return replace(self, category=Category.OTHER)


@record
class Alternative:
    """What was expected of one backend at the time of the decision.

    ``quality`` is the expected share of good answers, ``bound`` its lower bound (both 0 to 1);
    ``trust`` and ``hope`` are the bounds with the benefit of the doubt, which decide. ``evidence``
    is the weight of the labels behind them, in answers. ``ttft_s`` (seconds),
    ``tokens_per_second`` and ``cost`` (US dollars) are 0 if unmeasured. ``obstacle``: why it could
    not be asked at all.
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
    hope: float = 1.0


@dataclass(frozen=True, slots=True)
class RouteDecision:
    """``wait``: the target is not ready; show its progress and send the question then.

    ``alternatives`` are the local model, the servers beside it and the cloud, as they looked.
    ``who``: the name of the server, or of the cloud.
    """

    target: Target
    reason: Reason
    wait: bool = False
    question: Question = field(default_factory=Question)
    alternatives: tuple[Alternative, ...] = ()
    who: str = ""

    @property
    def server(self) -> str:
        """The name of the server that answers; empty: none does."""
        return self.who if self.target is Target.SERVER else ""

    @property
    def answerer(self) -> str:
        """``local``, ``cloud`` or ``server:NAME``."""
        return f"{self.target}:{self.who}" if self.server else self.target.value

    @property
    def chosen(self) -> Alternative | None:
        """What was expected of the target."""
        for one in self.alternatives:
            if (one.arm.target, one.arm.server) == (self.target, self.server):
                return one
        return None

    @property
    def adapter(self) -> str:
        """The target's adapter; empty: none."""
        return self.chosen.arm.adapter if self.chosen else ""
