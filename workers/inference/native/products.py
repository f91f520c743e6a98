"""Matrix products: weights of 8 bits times activations of 16 bits, by groups of 64.

The weights W of a linear layer (channels x inputs) are held as

    W[c, k] = scale[c, k // 64] * w[c, k]          w: int8, scale: bfloat16

(see `layout`), and a row of activations likewise, with a scale for each group:

    x[k] = step[k // 64] * q[k]                    q: int16, step: float32

so that, with a sum of integers that is exact (64 * 127 * 32767 < 2**31),

    y[c] = sum over groups g of  scale[c, g] * step[g] * (sum over k in g of w[c, k] * q[k])

16 bits for activations instead of llama.cpp's 8 (Q8_0) cost nothing with `multiply_pairs`, and
are as good as float32: what quality is lost is lost by the weights alone.

Sixteen channels are one panel; its weights are read once, in order, for up to four rows of
activations at a time. Every row is computed by the same operations in the same order, however
many rows there are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.inference.native.compiler import compiled
from workers.inference.native.lanes import (
    LANES,
    add_scaled,
    larger,
    largest_of,
    load_floats,
    load_weights,
    magnitudes,
    multiply_pairs,
    no_floats,
    no_ints,
    spread_pair,
    store_floats,
    store_rounded,
)
from workers.inference.native.layout import GROUP
from workers.inference.native.phases import Counters, finish_item, next_item, wait_for_all

_STEPS = np.float32(32767)
_PANELS = 4
"""Panels of an item: 64 channels."""
_ROWS = 16
"""Rows whose activations stay in the nearest cache while a panel after the other passes."""


class Activations(NamedTuple):
    """Rows of activations as `products` wants them: one matrix each, rows padded to groups."""

    numbers: NDArray[np.int16]  # (rows, inputs)
    steps: NDArray[np.float32]  # (rows, groups)


@compiled
def quantize_group(x: NDArray[np.float32], row: int, group: int, into: Activations) -> None:
    """Round 64 numbers of a row of ``x`` to 16 bits."""
    first = row * x.shape[1] + group * GROUP
    lanes = no_floats()
    for k in range(0, GROUP, LANES):
        lanes = larger(lanes, magnitudes(load_floats(x, first + k)))
    largest = largest_of(lanes)
    into.steps[row, group] = largest / _STEPS
    factor = _STEPS / largest if largest > 0 else np.float32(0)
    at = (row * into.steps.shape[1] + group) * GROUP
    for k in range(0, GROUP, LANES):
        store_rounded(into.numbers, at + k, load_floats(x, first + k), factor)


@compiled
def project(
    counters: Counters,
    phase: int,
    weights: NDArray[np.int8],
    scales: NDArray[np.uint16],
    x: Activations,
    rows: int,
    out: NDArray[np.float32],
    adding: bool,
) -> None:
    """A phase: ``out = W x``, or ``out += W x``, for all rows. ``out`` is (rows, channels)."""
    groups = x.steps.shape[1]
    panels = weights.size // (LANES * GROUP * groups)
    items = (panels + _PANELS - 1) // _PANELS
    item = next_item(counters, phase)
    while item < items:
        first, end = item * _PANELS, min(panels, (item + 1) * _PANELS)
        for begin in range(0, rows, _ROWS):
            for panel in range(first, end):
                _panel(weights, scales, x, begin, min(rows, begin + _ROWS), panel, out, adding)
        finish_item(counters, phase)
        item = next_item(counters, phase)
    wait_for_all(counters, phase, items)


@compiled
def _panel(
    weights: NDArray[np.int8],
    scales: NDArray[np.uint16],
    x: Activations,
    row: int,
    end: int,
    panel: int,
    out: NDArray[np.float32],
    adding: bool,
) -> None:
    """One panel's channels for the rows from ``row`` to ``end``: four at a time, or one."""
    while row < end:
        if end - row == 1:
            _times_one(weights, scales, x.numbers, x.steps, row, panel, out, adding)
            row += 1
        else:
            _times_four(weights, scales, x.numbers, x.steps, row, end, panel, out, adding)
            row += 4


@compiled
def _times_one(
    weights: NDArray[np.int8],
    scales: NDArray[np.uint16],
    numbers: NDArray[np.int16],
    steps: NDArray[np.float32],
    row: int,
    panel: int,
    out: NDArray[np.float32],
    adding: bool,
) -> None:
    groups = steps.shape[1]
    at, scale_at = panel * groups * GROUP * LANES, panel * groups * LANES
    x_at = row * groups * GROUP
    out_at = row * out.shape[1] + panel * LANES
    y = load_floats(out, out_at) if adding else no_floats()
    for group in range(groups):
        total = no_ints()
        for _ in range(GROUP // 2):
            total = multiply_pairs(total, load_weights(weights, at), spread_pair(numbers, x_at))
            at += 2 * LANES
            x_at += 2
        y = add_scaled(y, total, scales, scale_at, steps[row, group])
        scale_at += LANES
    store_floats(out, out_at, y)


@compiled
def _times_four(
    weights: NDArray[np.int8],
    scales: NDArray[np.uint16],
    numbers: NDArray[np.int16],
    steps: NDArray[np.float32],
    row: int,
    end: int,
    panel: int,
    out: NDArray[np.float32],
    adding: bool,
) -> None:
    """As `_times_one`, for four rows; when there are fewer, the last is computed again."""
    row1, row2, row3 = min(row + 1, end - 1), min(row + 2, end - 1), min(row + 3, end - 1)
    groups = steps.shape[1]
    at, scale_at = panel * groups * GROUP * LANES, panel * groups * LANES
    inputs, channels = groups * GROUP, out.shape[1]
    x0, x1, x2, x3 = row * inputs, row1 * inputs, row2 * inputs, row3 * inputs
    out0, out1 = row * channels + panel * LANES, row1 * channels + panel * LANES
    out2, out3 = row2 * channels + panel * LANES, row3 * channels + panel * LANES
    y0, y1, y2, y3 = no_floats(), no_floats(), no_floats(), no_floats()
    if adding:
        y0, y1 = load_floats(out, out0), load_floats(out, out1)
        y2, y3 = load_floats(out, out2), load_floats(out, out3)
    k = 0
    for group in range(groups):
        total0, total1, total2, total3 = no_ints(), no_ints(), no_ints(), no_ints()
        for _ in range(GROUP // 2):
            w = load_weights(weights, at)
            total0 = multiply_pairs(total0, w, spread_pair(numbers, x0 + k))
            total1 = multiply_pairs(total1, w, spread_pair(numbers, x1 + k))
            total2 = multiply_pairs(total2, w, spread_pair(numbers, x2 + k))
            total3 = multiply_pairs(total3, w, spread_pair(numbers, x3 + k))
            at += 2 * LANES
            k += 2
        y0 = add_scaled(y0, total0, scales, scale_at, steps[row, group])
        y1 = add_scaled(y1, total1, scales, scale_at, steps[row1, group])
        y2 = add_scaled(y2, total2, scales, scale_at, steps[row2, group])
        y3 = add_scaled(y3, total3, scales, scale_at, steps[row3, group])
        scale_at += LANES
    store_floats(out, out0, y0)
    store_floats(out, out1, y1)
    store_floats(out, out2, y2)
    store_floats(out, out3, y3)
