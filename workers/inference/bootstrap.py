"""How the local model comes up: the states it goes through, and the work that drives them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psutil

from shammah.bus.messages import (
    Downloading,
    Failed,
    Initializing,
    Loading,
    NotAvailable,
    Ready,
)
from shammah.config import Settings
from shammah.errors import ShammahError
from shammah.models import (
    LocatedModel,
    hub_cache,
    locate_model,
    starter_directory,
    total_memory,
)
from workers.inference.chat import ChatFormat
from workers.inference.checkpoint import Checkpoint, inspect_checkpoint
from workers.inference.engine import Engine, EngineFacts, LoadSettings, MakeEngine
from workers.inference.sampling import GenerationDefaults, read_defaults

log = logging.getLogger(__name__)

CHECK_FILES = "check files"
READ_TOKENIZER = "read tokenizer"


# --- the states ---------------------------------------------------------------------------

GeneratorState = Initializing | Downloading | Loading | Ready | NotAvailable | Failed
TERMINAL = (Ready, NotAvailable, Failed)


@dataclass(frozen=True, slots=True)
class Progressed:
    """Bytes of the model have arrived (see `Downloading`)."""

    model: str
    done: int
    total: int
    rate: float = 0.0
    eta_s: float | None = None


@dataclass(frozen=True, slots=True)
class Located:
    """The model's files are here; loading it takes ``stages`` stages."""

    model: str
    stages: int


@dataclass(frozen=True, slots=True)
class StageBegun:
    """A stage of the load has begun, so the one before it is done."""

    name: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model answers."""

    ready: Ready


@dataclass(frozen=True, slots=True)
class Unavailable:
    """There is no model to load, and nothing is broken."""

    reason: str
    hint: str


@dataclass(frozen=True, slots=True)
class Broke:
    """Something failed."""

    code: str
    message: str
    hint: str


Signal = Progressed | Located | StageBegun | Loaded | Unavailable | Broke


class IllegalTransitionError(Exception):
    """A signal that cannot come in this state: a mistake in the program."""


def transition(state: GeneratorState, signal: Signal) -> GeneratorState:
    """The state after ``signal``. A terminal state stays whatever comes late.

    Raises:
        IllegalTransitionError: the signal makes no sense in ``state``.
    """
    if isinstance(state, TERMINAL):
        return state
    match state, signal:
        case _, Broke(code, message, hint):
            return Failed(code, message, hint)
        case Initializing() | Downloading(), Progressed(model, done, total, rate, eta_s):
            return Downloading(model, done, total, rate, eta_s)
        case Initializing() | Downloading(), Located(model, stages):
            return Loading(model, CHECK_FILES, 0, stages)
        case Initializing() | Downloading(), Unavailable(reason, hint):
            return NotAvailable(reason, hint)
        case Loading(model, _, done, total), StageBegun(name):
            return Loading(model, name, done + 1, total)
        case Loading(), Loaded(ready):
            return ready
    raise IllegalTransitionError(f"{type(signal).__name__} in {type(state).__name__}")


# --- the work -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that answers, with what is known about it."""

    engine: Engine
    chat: ChatFormat
    defaults: GenerationDefaults
    ready: Ready

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self.defaults.stop_ids | self.chat.end_of_turn


class Bootstrap:
    """Brings the model up once and tells every state on the way.

    Args:
        publish: told each new state.
        advance: called for work within a state.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        stand_in: bool,
        environ: Mapping[str, str],
        make_engine: MakeEngine,
        publish: Callable[[GeneratorState], None],
        advance: Callable[[], None],
    ) -> None:
        self.state: GeneratorState = Initializing()
        self._settings = settings
        self._stand_in = stand_in
        self._environ = environ
        self._make_engine = make_engine
        self._publish = publish
        self.advance = advance

    def run(self) -> LoadedModel | None:
        """The model, or ``None`` when the state is now NotAvailable or Failed."""
        try:
            located = self._locate()
            if isinstance(located, NotAvailable):
                self._signal(Unavailable(located.reason, located.hint))
                return None
            return self._load(located)
        except ShammahError as error:
            log.warning("no model: %s %s", error.code, error)
            self._signal(Broke(error.code, error.message, error.hint))
        except Exception as error:
            log.exception("the bootstrap failed")
            why = f"The local model could not be loaded: {type(error).__name__}: {error}"
            self._signal(Broke("load_failed", why, "The inference worker's log says more."))
        return None

    def stage(self, name: str) -> None:
        """A stage has begun (the engine calls this)."""
        self._signal(StageBegun(name))

    def _signal(self, signal: Signal) -> None:
        self.state = transition(self.state, signal)
        log.info("%s", self.state)
        self._publish(self.state)

    def _locate(self) -> LocatedModel | NotAvailable:
        return locate_model(
            self._settings.model,
            total_memory(psutil.virtual_memory().total),
            hub_cache(self._environ),
            starter_directory(),
            stand_in=self._stand_in,
        )

    def _load(self, located: LocatedModel) -> LoadedModel:
        engine = self._make_engine()
        self._signal(Located(located.name, 2 + len(engine.stages)))
        checkpoint = inspect_checkpoint(located.directory)
        defaults = read_defaults(located.directory)
        self.stage(READ_TOKENIZER)
        chat = ChatFormat.load(located.directory)
        asked = self._settings.inference
        facts = engine.load(checkpoint, LoadSettings(asked.device, asked.dtype), self)
        ready = _ready(located, checkpoint, facts)
        self._signal(Loaded(ready))
        return LoadedModel(engine, chat, defaults, ready)


def _ready(located: LocatedModel, checkpoint: Checkpoint, facts: EngineFacts) -> Ready:
    return Ready(
        model=located.name,
        revision=checkpoint.revision,
        device=facts.device,
        dtype=facts.dtype,
        quantization=facts.quantization,
        context_length=checkpoint.context_length,
        engine=facts.engine,
        stand_in=located.stand_in,
    )
