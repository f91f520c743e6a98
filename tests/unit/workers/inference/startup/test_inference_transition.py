"""The states of the local model: every pair of state and event."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest

from shammah.bus.messages import (
    Downloading,
    Failed,
    Initializing,
    Loading,
    NotAvailable,
    Ready,
)
from workers.inference.startup.transition import (
    Event,
    GeneratorState,
    IllegalTransitionError,
    Missed,
    StageBegun,
    transition,
)

READY = Ready("m", context_length=8)
FALLBACK = Ready("starter", fallback=True, note="old")

STATE: dict[str, GeneratorState] = {
    "initializing": Initializing(),
    "downloading": Downloading("m", 1, 2),
    "loading": Loading("m", "check files", 0, 3),
    "ready": READY,
    "fallback": FALLBACK,
    "not available": NotAvailable("no", "hint"),
    "failed": Failed("code", "why", "hint"),
}
EVENT: dict[type, Event] = {
    Downloading: Downloading("m", 5, 9, 2.0, 2.0),
    Loading: Loading("m", "check files", 0, 3),
    StageBegun: StageBegun("import torch"),
    Ready: READY,
    NotAvailable: NotAvailable("offline", "go online"),
    Missed: Missed("m", "offline"),
    Failed: Failed("broken", "it broke", "mend it"),
}

_ARRIVED = Downloading("m", 5, 9, 2.0, 2.0)
_LOADING = Loading("m", "check files", 0, 3)
_BROKEN = Failed("broken", "it broke", "mend it")
_AWAY = NotAvailable("offline", "go online")

STAYS = ("ready", "not available", "failed")
"""The states that nothing ends."""

ALLOWED: dict[tuple[str, type], GeneratorState] = {
    ("initializing", Downloading): _ARRIVED,
    ("initializing", Loading): _LOADING,
    ("initializing", NotAvailable): _AWAY,
    ("initializing", Failed): _BROKEN,
    ("downloading", Downloading): _ARRIVED,
    ("downloading", Loading): _LOADING,
    ("downloading", NotAvailable): _AWAY,
    ("downloading", Failed): _BROKEN,
    ("loading", StageBegun): Loading("m", "import torch", 1, 3),
    ("loading", Ready): READY,
    ("loading", Failed): _BROKEN,
    # the fallback is being loaded while the other model arrives, or does not
    ("loading", Downloading): STATE["loading"],
    ("loading", NotAvailable): STATE["loading"],
    ("loading", Missed): STATE["loading"],
    # what was begun cannot be loaded, and another is
    ("loading", Loading): _LOADING,
    ("fallback", Downloading): Ready("starter", fallback=True, successor=_ARRIVED),
    ("fallback", Missed): Ready("starter", fallback=True, note="offline", missing="m"),
    ("fallback", Loading): _LOADING,
    ("fallback", Failed): _BROKEN,
}
"""Of the states that may end; every other pair is refused."""


def test_the_table_covers_every_state_and_event() -> None:
    assert {type(state) for state in STATE.values()} == set(get_args(GeneratorState))
    assert set(EVENT) == set(get_args(Event))


@pytest.mark.parametrize(("state", "event"), list(itertools.product(STATE, EVENT)))
def test_every_pair(state: str, event: type) -> None:
    before = STATE[state]
    if state in STAYS:
        assert transition(before, EVENT[event]) is before
    elif (state, event) in ALLOWED:
        assert transition(before, EVENT[event]) == ALLOWED[state, event]
    else:
        refused = f"{event.__name__} in {type(before).__name__}"
        with pytest.raises(IllegalTransitionError, match=refused):
            transition(before, EVENT[event])
