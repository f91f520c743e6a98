"""The numbers by which threads share the phases of a step; see `phases`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Counters = NDArray[np.int64]
"""One row per phase of a step, all zero at the step's beginning."""

TAKEN, FINISHED, ROW = 0, 8, 16
"""Places in a row, and its length: 64 bytes apart, each in a cache line of its own."""

PHASES_OF_A_LAYER = 11

ADAPTING_PHASES = 10
"""Of a layer: two for each call of `adaptation.adapt`."""


def new_counters(phases: int) -> Counters:
    return np.zeros((phases, ROW), np.int64)


def phases(layers: int, *, adapted: bool) -> int:
    """How many phases `step.step` has; those of adapters come after all others."""
    return 3 + (PHASES_OF_A_LAYER + (ADAPTING_PHASES if adapted else 0)) * layers
