"""Adapters: the product of two narrow matrices, added to a layer's for the rows that have one.

    y += B (A x)            A: (rank, inputs), B: (channels, rank), with the adapter's scale in B

(LoRA, https://arxiv.org/abs/2106.09685, section 4.1.) It is computed in float32 beside weights
that stay as they are: one step may have rows with different adapters and rows without any, and
these keep every bit. A row is computed by the same operations in the same order, whatever the
others are.

A lies in rows of whole groups, filled up to a multiple of four; B in panels of sixteen channels,
(panels, rank, 16). What was filled up is zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.inference.engines.native.compiler import compiled
from workers.inference.engines.native.counters import Counters
from workers.inference.engines.native.lanes import (
    Rows,
    add,
    add_multiplied,
    add_product,
    load_floats,
    load_floats_at,
    no_floats_of,
    place,
    store_float,
    store_floats,
    sum_of,
)
from workers.inference.engines.native.layout import LANES
from workers.inference.engines.native.operands import RANKS, SHARING, Adapters
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
    rows: int,
    out: NDArray[np.float32],
) -> None:
    """Two phases, if any row has an adapter: add their part to the products of ``count`` targets,
    which lie in ``out``.

    Args:
        first: the first of the targets.
        x: their common input, of ``inputs`` numbers in whole groups.
    """
    if adapters.used:
        _reduce(counters, phase, adapters, layer, first, count, x, inputs, rows)
        _expand(counters, phase + 1, adapters, layer, first, count, rows, out)


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
    rows: int,
) -> None:
    """A phase: ``low`` becomes A x."""
    ranks = adapters.low.shape[1] // SHARING
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
            into = row * adapters.low.shape[1] + target * ranks + rank
            _times_a(address, rank * inputs, x, row * x.shape[1], inputs, adapters.low, into)
        finish_item(counters, phase)
        item = next_item(counters, phase)
    wait_for_all(counters, phase, items)


@compiled
def _times_a(
    address: int,
    at: int,
    x: NDArray[np.float32],
    x_at: int,
    inputs: int,
    low: NDArray[np.float32],
    into: int,
) -> None:
    """Four rows of A times a row of ``x``."""
    total = no_floats_of(_FOUR)
    for k in range(0, inputs, LANES):
        ranks = load_floats_at(address, place(_FOUR, inputs, at + k))
        total = add_multiplied(total, ranks, load_floats(x, x_at + k))
    store_float(low, place(_FOUR, 1, into), sum_of(total))


@compiled
def _expand(
    counters: Counters,
    phase: int,
    adapters: Adapters,
    layer: int,
    first: int,
    count: int,
    rows: int,
    out: NDArray[np.float32],
) -> None:
    """A phase: ``out`` += B low."""
    width = adapters.low.shape[1]
    begun = 0  # items of the targets before
    item = next_item(counters, phase)
    for target in range(first, first + count):
        panels, place = adapters.panels[target], adapters.places[target]
        items = begun + (panels + _PANELS - 1) // _PANELS
        low_at = (target - first) * (width // SHARING)
        while item < items:
            panel = (item - begun) * _PANELS
            end = min(panels, panel + _PANELS)
            for row in range(rows):
                adapter = adapters.of_row[row]
                if adapter < 0:
                    continue
                rank = adapters.table[adapter, layer, target, _RANK]
                address = adapters.table[adapter, layer, target, _B]
                if rank:
                    at, low = row * out.shape[1] + place, row * width + low_at
                    _times_b(address, rank, panel, end, adapters.low, low, out, at)
            finish_item(counters, phase)
            item = next_item(counters, phase)
        begun = items
    wait_for_all(counters, phase, begun)


@compiled
def _times_b(
    address: int,
    rank: int,
    panel: int,
    end: int,
    low: NDArray[np.float32],
    low_at: int,
    out: NDArray[np.float32],
    out_at: int,
) -> None:
    """Some panels of B times a row of ``low``, added to a row of ``out``; four together, or one."""
    while end - panel >= _PANELS:
        _add_panels(address, rank, place(_FOUR, 1, panel), low, low_at, out, out_at)
        panel += _PANELS
    for last in range(panel, end):
        _add_panels(address, rank, last, low, low_at, out, out_at)


@compiled
def _add_panels(
    address: int,
    rank: int,
    panels: Rows,
    low: NDArray[np.float32],
    low_at: int,
    out: NDArray[np.float32],
    out_at: int,
) -> None:
    """One panel, or a tuple of panels together."""
    total = no_floats_of(panels)
    for r in range(rank):
        channels = load_floats_at(address, place(panels, rank * LANES, r * LANES))
        total = add_product(total, low, low_at + r, channels)
    to = place(panels, LANES, out_at)
    store_floats(out, to, add(load_floats(out, to), total))
