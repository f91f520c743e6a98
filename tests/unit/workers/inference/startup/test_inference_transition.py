"""The states of the local model: every pair of state and signal."""

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
    Broke,
    GeneratorState,
    IllegalTransitionError,
    Loaded,
    Located,
    Progressed,
    Signal,
    StageBegun,
    Unavailable,
    transition,
)

READY = Ready("m", context_length=8)
STAND_IN = Ready("starter", fallback=True, note="old")

STATE: dict[str, GeneratorState] = {
    "initializing": Initializing(),
    "downloading": Downloading("m", 1, 2),
    "loading": Loading("m", "check files", 0, 3),
    "ready": READY,
    "standing in": STAND_IN,
    "not available": NotAvailable("no", "hint"),
    "failed": Failed("code", "why", "hint"),
}
SIGNAL: dict[type, Signal] = {
    Progressed: Progressed("m", 5, 9, 2.0, 2.0),
    Located: Located("m", 3),
    StageBegun: StageBegun("import torch"),
    Loaded: Loaded(READY),
    Unavailable: Unavailable("offline", "go online"),
    Broke: Broke("broken", "it broke", "mend it"),
}

_ARRIVED = Downloading("m", 5, 9, 2.0, 2.0)
_LOADING = Loading("m", "check files", 0, 3)
_BROKEN = Failed("broken", "it broke", "mend it")
_AWAY = NotAvailable("offline", "go online")

STAYS = ("ready", "not available", "failed")
"""The states that nothing ends."""

ALLOWED: dict[tuple[str, type], GeneratorState] = {
    ("initializing", Progressed): _ARRIVED,
    ("initializing", Located): _LOADING,
    ("initializing", Unavailable): _AWAY,
    ("initializing", Broke): _BROKEN,
    ("downloading", Progressed): _ARRIVED,
    ("downloading", Located): _LOADING,
    ("downloading", Unavailable): _AWAY,
    ("downloading", Broke): _BROKEN,
    ("loading", StageBegun): Loading("m", "import torch", 1, 3),
    ("loading", Loaded): READY,
    ("loading", Broke): _BROKEN,
    # the stand-in is being loaded while the other model arrives, or does not
    ("loading", Progressed): STATE["loading"],
    ("loading", Unavailable): STATE["loading"],
    # what was begun cannot be loaded, and another is
    ("loading", Located): _LOADING,
    ("standing in", Progressed): Ready("starter", fallback=True, successor=_ARRIVED),
    ("standing in", Unavailable): Ready("starter", fallback=True, note="offline go online"),
    ("standing in", Located): _LOADING,
    ("standing in", Broke): _BROKEN,
}
"""Of the states that may end; every other pair is refused."""


def test_the_table_covers_every_state_and_signal() -> None:
    assert {type(state) for state in STATE.values()} == set(get_args(GeneratorState))
    assert set(SIGNAL) == set(get_args(Signal))


@pytest.mark.parametrize(("state", "signal"), list(itertools.product(STATE, SIGNAL)))
def test_every_pair(state: str, signal: type) -> None:
    before = STATE[state]
    if state in STAYS:
        assert transition(before, SIGNAL[signal]) is before
    elif (state, signal) in ALLOWED:
        assert transition(before, SIGNAL[signal]) == ALLOWED[state, signal]
    else:
        refused = f"{signal.__name__} in {type(before).__name__}"
        with pytest.raises(IllegalTransitionError, match=refused):
            transition(before, SIGNAL[signal])
