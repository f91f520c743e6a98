"""Which adapter the local model answers a question with."""

from __future__ import annotations

from pathlib import Path

from shammah.bus.messages import Ready, State
from shammah.errors import ShammahError
from shammah.router.route import AUTO, OFF


def choose_adapter(home: Path, requested: str, state: State | None) -> str:
    """Its name; empty: none, or it is not known yet which model will answer.

    Args:
        home: where adapters are kept.
        requested: see `Override.adapter`. A name is taken as it is; the worker checks it.
        state: of the local model.
    """
    if requested == OFF or not isinstance(state, Ready):
        return ""
    if requested != AUTO:
        return requested
    from shammah.learning.adapters import AdapterStore  # not before there is a model that it is for

    entry = AdapterStore(home).active(state.model, state.revision)
    return entry.name if entry else ""


def learnt_private(home: Path, name: str) -> bool:
    """Whether an adapter was taught private turns, and may repeat them; empty: there is none."""
    if not name:
        return False
    from shammah.learning.adapters import AdapterStore

    try:
        return bool(AdapterStore(home).get(name).training.get("private_examples", 0))
    except ShammahError:  # it was removed: nobody knows
        return True
