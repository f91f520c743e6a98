"""What a step works with: tuples of arrays and numbers, which Python makes and kernels take apart.

Imports no numba, so that a start which finds the machine code kept need not either. How they
reach the kernels is said in `machine_code`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.inference.engines.native.layout import PANEL

Counters = NDArray[np.int64]
"""Numbers by which threads share a step (see `phases`): a row for each of its phases, all zero at
its beginning."""

TAKEN, FINISHED, ROW = 0, 8, 16
"""Places in a row, and its length: 64 bytes apart, each in a cache line of its own."""

GIVEN_UP = 1
"""Place in the first row: not 0 when no thread shall go on."""

PHASES_OF_A_LAYER = 11

ADAPTING_PHASES = 10
"""Of a layer: two for each call of `adaptation.adapt`."""

CHUNK = 256
"""Positions of the cache that attention takes at once."""

TILE = 4
"""Queries that it takes together."""

WIDENED = 512
"""Inputs of a panel whose weights are widened at a time: 16 KiB, half of the nearest cache."""

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
"""The matrices of a layer that can be adapted, in the order of all tables of adapters."""

RANKS = 4
"""Rows of an adapter's A that are computed together."""

SHARING = 2
"""Targets that `adaptation.adapt` takes at once, at most."""


def new_counters(layers: int, *, adapted: bool) -> Counters:
    """The counters of a step; the phases of adapters come after all others."""
    phases = 4 + (PHASES_OF_A_LAYER + (ADAPTING_PHASES if adapted else 0)) * layers
    return np.zeros((phases, ROW), np.int64)


class Activations(NamedTuple):
    """Rows of activations as `products` wants them: one matrix each, rows padded to groups."""

    numbers: NDArray[np.int16]  # (rows, inputs)
    steps: NDArray[np.float32]  # (rows, groups)
    small_numbers: NDArray[np.int8]  # (rows, inputs), or none: for weights of 4 bits
    small_steps: NDArray[np.float32]  # (rows, small groups)
    zeros: NDArray[np.float32]  # (rows, small groups): minus a 16th of the step times the sum


class Matrix(NamedTuple):
    """The packed matrices of all layers (or the only one): (layers, ...)."""

    bits: int
    weights: NDArray[np.int8]
    scales: NDArray[np.uint16]
    units: NDArray[np.float32]  # none if in 8 bits
    adds: bool
    """Whether the product is added to what is there."""


class Cache(NamedTuple):
    """Keys and values, as float16."""

    keys: NDArray[np.uint16]
    values: NDArray[np.uint16]


class Queries(NamedTuple):
    """What attention is computed for.

    ``rows`` of the step, in spans: those from ``begins[i]`` up to ``begins[i + 1]`` belong to one
    slot, at rising positions.
    """

    rows: int
    begins: NDArray[np.int64]
    slots: NDArray[np.int64]
    positions: NDArray[np.int64]


class Scratch(NamedTuple):
    """Where the threads work: (threads, TILE, ...)."""

    places: NDArray[np.int64]  # where a query begins in ``heads`` and ``out``
    ends: NDArray[np.int64]  # the first position that a query does not see
    weights: NDArray[np.float32]  # (..., CHUNK)
    mixed: NDArray[np.float32]  # (..., head size, padded)
    highest: NDArray[np.float32]
    sums: NDArray[np.float32]
    widened: NDArray[np.int16]  # (threads, WIDENED * PANEL): a part of a panel's weights
    partial: NDArray[np.float32]  # (threads, rows, PANEL): its product, as far as it has come


def make_scratch(threads: int, head_size: int, rows: int) -> Scratch:
    return Scratch(
        places=np.zeros((threads, TILE), np.int64),
        ends=np.zeros((threads, TILE), np.int64),
        weights=np.zeros((threads, TILE, CHUNK), np.float32),
        mixed=np.zeros((threads, TILE, head_size), np.float32),
        highest=np.zeros((threads, TILE), np.float32),
        sums=np.zeros((threads, TILE), np.float32),
        widened=np.zeros((threads, WIDENED * PANEL), np.int16),
        partial=np.zeros((threads, rows, PANEL), np.float32),
    )


class Adapters(NamedTuple):
    """Those of a step. Unless ``used``, no row has one, and nothing else is looked at.

    `HeldAdapters` owns what lies at the addresses.
    """

    used: bool
    of_row: NDArray[np.int64]  # (rows): a number in the table, or -1
    table: NDArray[np.int64]  # (adapters, layers, targets, 3): addresses of A and B; the rank
    panels: NDArray[np.int64]  # (targets): of B
    places: NDArray[np.int64]  # (targets): where the channels begin in a row of the product
    low: NDArray[np.float32]  # (rows, SHARING * the highest rank, filled up): A x


class Model(NamedTuple):
    """The weights. What an architecture does not have is there with a length of 0."""

    eps: float
    embedding: Matrix
    qk: Matrix
    v: Matrix  # and, if it is there, what rounding has left of it
    output: Matrix
    gate_up: Matrix
    down: Matrix
    outer_down: Matrix
    down_places: NDArray[np.int64]  # (layers): where in down; or past its end, in outer_down
    head: Matrix
    attention_norm: NDArray[np.float32]  # (layers, hidden)
    mlp_norm: NDArray[np.float32]  # (layers, hidden)
    final_norm: NDArray[np.float32]  # (hidden)
    bias: NDArray[np.float32]  # (layers, channels of q, k and v, or 0)
    head_norms: NDArray[np.float32]  # (layers, 2 or 0, head size): of q and of k


class Buffers(NamedTuple):
    """Where a step works: one row for each row of the step."""

    hidden: NDArray[np.float32]  # (rows, hidden): x above
    normed: NDArray[np.float32]  # (rows, hidden)
    qk: NDArray[np.float32]  # (rows, channels)
    v: NDArray[np.float32]  # (rows, channels)
    queries: NDArray[np.float32]  # (rows, heads, head size)
    attended: NDArray[np.float32]  # (rows, heads * head size)
    gate_up: NDArray[np.float32]  # (rows, 2 * intermediate)
    logits: NDArray[np.float32]  # (rows, vocabulary)
    narrow: Activations  # of normed
    heads: Activations  # of attended
    wide: Activations  # of silu(gate) * up
    scratch: Scratch


class Batch(NamedTuple):
    """The rows of a step. Logits are computed for those that are ``wanted``, in rising order."""

    tokens: NDArray[np.int64]
    queries: Queries
    cosines: NDArray[np.float32]  # (rows, half a head): rotary embeddings
    sines: NDArray[np.float32]
    wanted: NDArray[np.int64]
    adapters: Adapters


class Operands(NamedTuple):
    """All of it; what stays the same from step to step comes first."""

    model: Model
    buffers: Buffers
    cache: Cache
    counters: Counters
    batch: Batch


class Packing(NamedTuple):
    """What `int8_rounding` works with."""

    matrix: NDArray[np.float32]  # (channels, inputs)
    weights: NDArray[np.int8]
    scales: NDArray[np.uint16]
    values: NDArray[np.float32]  # (GROUP): scratch, as the next
    whole: NDArray[np.int16]  # (GROUP)


class SmallPacking(NamedTuple):
    """What `int4_rounding` works with."""

    columns: NDArray[np.float32]  # (panels, inputs, 16)
    words: NDArray[np.uint16]
    scales: NDArray[np.uint16]
    units: NDArray[np.float32]
    lines: NDArray[np.float32]  # scratch: scales and offsets of one panel
    group: NDArray[np.float32]  # scratch
