"""The states of the local model: one pure function over states and signals."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shammah.bus.messages import (
    Downloading,
    Failed,
    Initializing,
    Loading,
    NotAvailable,
    Ready,
)

CHECK_FILES = "check files"

GeneratorState = Initializing | Downloading | Loading | Ready | NotAvailable | Failed
TERMINAL = (NotAvailable, Failed)


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
    """There is no model to load, or none to replace the fallback (``model`` could not be
    downloaded); nothing is broken."""

    reason: str
    hint: str
    model: str = ""


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
    """The state after ``signal``.

    A terminal state stays whatever comes late, and so does a model that is nobody's fallback model.
    A fallback model keeps answering while its successor's bytes arrive. What is told about them
    while the fallback model itself is being loaded changes nothing.

    Raises:
        IllegalTransitionError: the signal makes no sense in ``state``.
    """
    if isinstance(state, TERMINAL):
        return state
    match state, signal:
        case Ready(fallback=False), _:
            return state
        case _, Broke(code, message, hint):
            return Failed(code, message, hint)
        case Initializing() | Downloading(), Progressed(model, done, total, rate, eta_s):
            return Downloading(model, done, total, rate, eta_s)
        case Initializing() | Downloading(), Unavailable(reason, hint):
            return NotAvailable(reason, hint)
        case Ready(), Progressed(model, done, total, rate, eta_s):
            successor = Downloading(model, done, total, rate, eta_s)
            return replace(state, successor=successor, note="", missing="")
        case Ready(), Unavailable(reason, hint, model):
            note = f"{reason} {hint}".rstrip()
            return replace(state, successor=None, note=note, missing=model)
        case Loading(), Progressed() | Unavailable():
            return state
        case _, Located(model, stages):
            return Loading(model, CHECK_FILES, 0, stages)
        case Loading(model, _, done, total), StageBegun(name):
            return Loading(model, name, done + 1, total)
        case Loading(), Loaded(ready):
            return ready
    raise IllegalTransitionError(f"{type(signal).__name__} in {type(state).__name__}")
