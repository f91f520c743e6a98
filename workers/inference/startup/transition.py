"""The states of the local model: one pure function over states and events."""

from __future__ import annotations

from dataclasses import replace

from shammah.bus.messages import (
    Downloading,
    Failed,
    Initializing,
    Loading,
    NotAvailable,
    Ready,
)
from shammah.bus.record import record

CHECK_FILES = "check files"

GeneratorState = Initializing | Downloading | Loading | Ready | NotAvailable | Failed


@record
class StageBegun:
    """A stage of the load has begun, so the one before it is done."""

    name: str


@record
class Missed:
    """The fallback's successor ``model`` could not be downloaded, or not yet; ``note`` says why."""

    model: str
    note: str


Event = Downloading | Loading | Ready | NotAvailable | Failed | StageBegun | Missed
"""What happens; where that is a state, it is the one to be in unless another rule holds."""


class IllegalTransitionError(Exception):
    """An event that cannot come in this state: a mistake in the program."""


def transition(state: GeneratorState, event: Event) -> GeneratorState:
    """Return the state after ``event``.

    A terminal state stays whatever comes late, and so does a model that is nobody's fallback.
    A fallback keeps answering while its successor is downloaded. What is reported of that while
    the fallback itself is being loaded changes nothing.

    Raises:
        IllegalTransitionError: the event makes no sense in ``state``.
    """
    match state, event:
        case ((NotAvailable() | Failed() | Ready(fallback=False)), _):
            return state
        case _, Failed() | Loading():
            return event
        case Initializing() | Downloading(), Downloading() | NotAvailable():
            return event
        case Ready(), Downloading():
            return replace(state, successor=event, note="", missing="")
        case Ready(), Missed(model, note):
            return replace(state, successor=None, note=note, missing=model)
        case Loading(), Downloading() | Missed() | NotAvailable():
            return state
        case Loading(model, _, done, total), StageBegun(name):
            return Loading(model, name, done + 1, total)
        case Loading(), Ready():
            return event
    raise IllegalTransitionError(f"{type(event).__name__} in {type(state).__name__}")
