"""Adapters: the product of two narrow matrices, added to a layer's for the rows that have one.

    y += B (A x)            A: (rank, inputs), B: (channels, rank), with the adapter's scale in B

(LoRA, https://arxiv.org/abs/2106.09685, section 4.1.) It is computed in float32 while the
weights stay as they are: one step may have rows with different adapters and rows without any, and
these keep every bit. A row is computed by the same operations in the same order, whatever the
others are.

A lies in rows of whole groups, filled up to a multiple of four; B in panels of sixteen channels,
(panels, rank, 16). What was filled up is zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.inference.engines.native.compiler import compiled
from workers.inference.engines.native.lanes import (
    add,
    add_multiplied,
    add_product,
    following,
    load_floats,
    load_floats_at,
    no_floats_of,
    place,
    store_float,
    store_floats,
    sum_of,
)
from workers.inference.engines.native.layout import LANES
from workers.inference.engines.native.operands import RANKS, SHARING, Adapters, Counters
from workers.inference.engines.native.phases import finish_item, next_item, wait_for_all

_A, _B, _RANK = range(3)
_PANELS = 4
"""Panels of an item: 64 channels."""
_FOUR = tuple(range(4))
_ROWS = 16
"""Rows for which a part of A stays in the nearest cache."""


@compiled
def adapt(
    counters: Counters,
    phase: int,
    adapters: Adapters,
    layer: int,
    first: int,
    count: int,
    x: NDArray[np.float32],
    inputs: int,
    out: NDArray[np.float32],
) -> None:
    """Two phases, if any row has an adapter: add their part to the products of ``count`` targets,
    which lie in ``out``.

    Args:
        first: the first of the targets.
        x: their common input, of ``inputs`` numbers in whole groups.
    """
    if adapters.used:
        _reduce(counters, phase, adapters, layer, first, count, x, inputs)
        _expand(counters, phase + 1, adapters, layer, first, count, out)


@compiled
def _reduce(
    counters: Counters,
    phase: int,
    adapters: Adapters,
    layer: int,
    first: int,
    count: int,
    x: NDArray[np.float32],
    inputs: int,
) -> None:
    """A phase: ``low`` becomes A x."""
    rows, ranks = adapters.of_row.shape[0], adapters.low.shape[1] // SHARING
    blocks, stretches = ranks // RANKS, (rows + _ROWS - 1) // _ROWS
    items = count * blocks * stretches
    item = next_item(counters, phase)
    while item < items:
        target, rest = item // (blocks * stretches), item % (blocks * stretches)
        rank, begin = rest // stretches * RANKS, rest % stretches * _ROWS
        for row in range(begin, min(rows, begin + _ROWS)):
            adapter = adapters.of_row[row]
            if adapter < 0 or rank >= adapters.table[adapter, layer, first + target, _RANK]:
                continue
            address = adapters.table[adapter, layer, first + target, _A]
            total = no_floats_of(_FOUR)
            for k in range(0, inputs, LANES):
                four = load_floats_at(address, place(_FOUR, inputs, rank * inputs + k))
                total = add_multiplied(total, four, load_floats(x, row * x.shape[1] + k))
            into = row * adapters.low.shape[1] + target * ranks + rank
            store_float(adapters.low, place(_FOUR, 1, into), sum_of(total))
        finish_item(counters, phase)
        item = next_item(counters, phase)
    wait_for_all(counters, phase, items)


@compiled
def _expand(
    counters: Counters,
    phase: int,
    adapters: Adapters,
    layer: int,
    first: int,
    count: int,
    out: NDArray[np.float32],
) -> None:
    """A phase: ``out`` += B low."""
    low, width = adapters.low, adapters.low.shape[1]
    begun = 0  # items of the targets before
    item = next_item(counters, phase)
    for target in range(first, first + count):
        panels = adapters.panels[target]
        items = begun + (panels + _PANELS - 1) // _PANELS
        while item < items:
            # When there are fewer, the last is computed more than once.
            some = following(_FOUR, (item - begun) * _PANELS, panels - 1)
            for row in range(adapters.of_row.shape[0]):
                adapter = adapters.of_row[row]
                if adapter < 0 or not adapters.table[adapter, layer, target, _RANK]:
                    continue
                rank = adapters.table[adapter, layer, target, _RANK]
                address = adapters.table[adapter, layer, target, _B]
                low_at = row * width + (target - first) * (width // SHARING)
                total = no_floats_of(some)
                for r in range(rank):
                    channels = load_floats_at(address, place(some, rank * LANES, r * LANES))
                    total = add_product(total, low, low_at + r, channels)
                at = place(some, LANES, row * out.shape[1] + adapters.places[target])
                store_floats(out, at, add(load_floats(out, at), total))
            finish_item(counters, phase)
            item = next_item(counters, phase)
        begun = items
    wait_for_all(counters, phase, begun)
