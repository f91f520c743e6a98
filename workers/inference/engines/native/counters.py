"""The numbers by which threads share the phases of a step; see `phases`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Counters = NDArray[np.int64]
"""One row per phase of a step, all zero at the step's beginning."""

TAKEN, FINISHED, ROW = 0, 8, 16
"""Places in a row, and its length: 64 bytes apart, each in a cache line of its own."""

PHASES_OF_A_LAYER = 11

ADAPTING_PHASES = 2
"""Of each call of `adaptation.adapt`."""

ADAPTED = 5
"""Calls of it in a layer."""


def new_counters(phases: int) -> Counters:
    return np.zeros((phases, ROW), np.int64)


def phases(layers: int, *, adapted: bool) -> int:
    """How many phases `step.step` has; those of adapters come after all others."""
    more = ADAPTED * ADAPTING_PHASES if adapted else 0
    return 3 + (PHASES_OF_A_LAYER + more) * layers
