"""Matrix products: weights of 8 or 4 bits times activations of 16 bits, by groups.

The weights of a linear layer (channels x inputs) are held as `layout` says, and a row of
activations with a step for each group of 64:

    x[k] = step[k // 64] * q[k]                    q: int16, step: float32

so that, with sums of integers that are exact (64 * 127 * 32767 < 2**31), in 8 bits

    y[c] = sum over groups g of  scale[c, g] * step[g] * (sum over k in g of w[c, k] * q[k])

and in 4 bits, where two small groups g share a step, and a zero point needs only the sum of q,

    y[c] = unit[c] * sum over small groups g of  scale[c, g] * step[g] *
           (sum over k in g of w[c, k] * q[k]  -  zero[c, g] / 16 * sum over k in g of q[k])

16 bits for activations instead of llama.cpp's 8 cost nothing with `multiply_pairs`, and are as
good as float32: what quality is lost is lost by the weights alone.

Sixteen channels are one panel; its weights are read once, in order, for up to four rows of
activations at a time, or eight where the processor has 32 registers for vectors. Every row is
computed by the same operations in the same order, however many rows there are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.inference.engines.native.compiler import compiled
from workers.inference.engines.native.counters import Counters
from workers.inference.engines.native.int4_products import AHEAD, int4_panel
from workers.inference.engines.native.lanes import (
    Vector,
    larger,
    largest_of,
    load_floats,
    magnitudes,
    no_floats,
    store_floats,
    store_rounded,
)
from workers.inference.engines.native.layout import GROUP, INT4_GROUP, LANES
from workers.inference.engines.native.operands import Activations, Matrix
from workers.inference.engines.native.pairs import (
    add_scaled,
    load_weights,
    multiply_pairs,
    no_ints,
    prefetch,
    spread_pair,
)
from workers.inference.engines.native.phases import finish_item, next_item, wait_for_all
from workers.inference.engines.native.processor import features

_STEPS = np.float32(32767)
_ZERO_STEP = np.float32(-1 / 16)
_PANELS = 4
"""Panels of an item: 64 channels."""
_EIGHT_FIT = "AVX512F" in features()
"""Whether eight sums stay in registers. They are 3 to 23 % faster then than twice four."""
_ROWS = 16
"""Rows whose activations stay in the nearest cache while a panel after the other passes."""


@compiled
def quantize_group(x: NDArray[np.float32], row: int, group: int, into: Activations) -> None:
    """Round 64 numbers of a row of ``x`` to 16 bits."""
    first = row * x.shape[1] + group * GROUP
    lanes = no_floats()
    for k in range(0, GROUP, LANES):
        lanes = larger(lanes, magnitudes(load_floats(x, first + k)))
    largest = largest_of(lanes)
    step = largest / _STEPS
    into.steps[row, group] = step
    factor = _STEPS / largest if largest > 0 else np.float32(0)
    at = (row * into.steps.shape[1] + group) * GROUP
    for k in range(0, GROUP, LANES):
        store_rounded(into.numbers, at + k, load_floats(x, first + k), factor)
    for half in range(2):
        total = 0
        for k in range(half * INT4_GROUP, (half + 1) * INT4_GROUP):
            total += into.numbers[row, group * GROUP + k]
        into.zeros[row, 2 * group + half] = np.float32(total) * (step * _ZERO_STEP)


@compiled
def project(
    counters: Counters,
    phase: int,
    matrix: Matrix,
    layer: int,
    x: Activations,
    rows: int,
    out: NDArray[np.float32],
) -> None:
    """A phase: ``out = W x``, or ``out += W x``, for all rows. ``out`` is (rows, channels)."""
    items = begin_projecting(counters, phase, matrix, layer, x, rows, out)
    wait_for_all(counters, phase, items)


@compiled
def begin_projecting(
    counters: Counters,
    phase: int,
    matrix: Matrix,
    layer: int,
    x: Activations,
    rows: int,
    out: NDArray[np.float32],
) -> int:
    """`project`, without waiting for the items that others have taken; how many there are."""
    weights, scales, units = matrix.weights[layer], matrix.scales[layer], matrix.units[layer]
    numbers, steps, zeros = x.numbers, x.steps, x.zeros
    panels = weights.size * 8 // (LANES * numbers.shape[1] * matrix.bits)
    items: int = (panels + _PANELS - 1) // _PANELS
    item = next_item(counters, phase)
    while item < items:
        first, end = item * _PANELS, min(panels, (item + 1) * _PANELS)
        for begin in range(0, rows, _ROWS):
            last = min(rows, begin + _ROWS)
            for panel in range(first, end):
                if matrix.bits == 8:
                    _panel(weights, scales, numbers, steps, begin, last, panel, out, matrix.adds)
                else:
                    int4_panel(
                        weights,
                        scales,
                        units,
                        numbers,
                        steps,
                        zeros,
                        begin,
                        last,
                        panel,
                        out,
                        matrix.adds,
                    )
        finish_item(counters, phase)
        item = next_item(counters, phase)
    return items


@compiled
def _panel(
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
    """One panel's channels for the rows from ``row`` to ``end``: as many at a time as fit."""
    while row < end:
        if end - row == 1:
            _times_one(weights, scales, numbers, steps, row, panel, out, adding)
            row += 1
        elif _EIGHT_FIT and end - row >= 8:
            _times_eight(weights, scales, numbers, steps, row, panel, out, adding)
            row += 8
        else:
            _times_four(weights, scales, numbers, steps, row, end, panel, out, adding)
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
            prefetch(weights, at + AHEAD)
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
            prefetch(weights, at + AHEAD)
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


@compiled
def _times_eight(
    weights: NDArray[np.int8],
    scales: NDArray[np.uint16],
    numbers: NDArray[np.int16],
    steps: NDArray[np.float32],
    row: int,
    panel: int,
    out: NDArray[np.float32],
    adding: bool,
) -> None:
    """As `_times_one`, for eight rows."""
    groups, channels = steps.shape[1], out.shape[1]
    at, scale_at = panel * groups * GROUP * LANES, panel * groups * LANES
    inputs = groups * GROUP
    x, y = row * inputs, row * channels + panel * LANES
    y0, y1 = _begin(out, y, adding), _begin(out, y + channels, adding)
    y2, y3 = _begin(out, y + 2 * channels, adding), _begin(out, y + 3 * channels, adding)
    y4, y5 = _begin(out, y + 4 * channels, adding), _begin(out, y + 5 * channels, adding)
    y6, y7 = _begin(out, y + 6 * channels, adding), _begin(out, y + 7 * channels, adding)
    for group in range(groups):
        t0, t1, t2, t3 = no_ints(), no_ints(), no_ints(), no_ints()
        t4, t5, t6, t7 = no_ints(), no_ints(), no_ints(), no_ints()
        for _ in range(GROUP // 2):
            prefetch(weights, at + AHEAD)
            w = load_weights(weights, at)
            t0 = multiply_pairs(t0, w, spread_pair(numbers, x))
            t1 = multiply_pairs(t1, w, spread_pair(numbers, x + inputs))
            t2 = multiply_pairs(t2, w, spread_pair(numbers, x + 2 * inputs))
            t3 = multiply_pairs(t3, w, spread_pair(numbers, x + 3 * inputs))
            t4 = multiply_pairs(t4, w, spread_pair(numbers, x + 4 * inputs))
            t5 = multiply_pairs(t5, w, spread_pair(numbers, x + 5 * inputs))
            t6 = multiply_pairs(t6, w, spread_pair(numbers, x + 6 * inputs))
            t7 = multiply_pairs(t7, w, spread_pair(numbers, x + 7 * inputs))
            at, x = at + 2 * LANES, x + 2
        y0 = add_scaled(y0, t0, scales, scale_at, steps[row, group])
        y1 = add_scaled(y1, t1, scales, scale_at, steps[row + 1, group])
        y2 = add_scaled(y2, t2, scales, scale_at, steps[row + 2, group])
        y3 = add_scaled(y3, t3, scales, scale_at, steps[row + 3, group])
        y4 = add_scaled(y4, t4, scales, scale_at, steps[row + 4, group])
        y5 = add_scaled(y5, t5, scales, scale_at, steps[row + 5, group])
        y6 = add_scaled(y6, t6, scales, scale_at, steps[row + 6, group])
        y7 = add_scaled(y7, t7, scales, scale_at, steps[row + 7, group])
        scale_at += LANES
    _store_four(out, y, channels, y0, y1, y2, y3)
    _store_four(out, y + 4 * channels, channels, y4, y5, y6, y7)


@compiled
def _begin(out: NDArray[np.float32], at: int, adding: bool) -> Vector:
    return load_floats(out, at) if adding else no_floats()


@compiled
def _store_four(
    out: NDArray[np.float32], at: int, channels: int, y0: Vector, y1: Vector, y2: Vector, y3: Vector
) -> None:
    store_floats(out, at, y0)
    store_floats(out, at + channels, y1)
    store_floats(out, at + 2 * channels, y2)
    store_floats(out, at + 3 * channels, y3)
