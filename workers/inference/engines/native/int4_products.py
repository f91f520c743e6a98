"""Matrix products with weights of 4 bits: the innermost part of `products`, which has the formula.

The four numbers of a word are taken out by shifting and masking. For four rows, two at a time, so
that all that is worked with stays in registers; for one row there is room for a second sum, and
every other number need not be moved down: its sixteenfold is taken, and the sum divided.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.inference.engines.native.compiler import compiled
from workers.inference.engines.native.lanes import (
    Vector,
    add_multiplied,
    add_product,
    load_floats,
    no_floats,
    store_floats,
)
from workers.inference.engines.native.layout import INT4_GROUP, LANES
from workers.inference.engines.native.pairs import (
    add_sixteenths,
    floats_of,
    high_bytes,
    load_words,
    low_bytes,
    multiply_pairs,
    nibbles_0,
    nibbles_1,
    nibbles_1_times_16,
    nibbles_2,
    nibbles_3,
    nibbles_3_times_16,
    no_ints,
    prefetch,
    spread_pair,
)

_BLOCKS, _HALF = INT4_GROUP // 8, INT4_GROUP // 2
AHEAD = 2048
"""Bytes between the weights in use and those that are sent for. What the processor foresees by
itself ends with a page."""
_BLOCK_BYTES, _GROUP_BYTES = 4 * LANES, INT4_GROUP * LANES // 2


@compiled
def int4_panel(
    weights: NDArray[np.int8],
    scales: NDArray[np.uint16],
    units: NDArray[np.float32],
    numbers: NDArray[np.int16],
    steps: NDArray[np.float32],
    zeros: NDArray[np.float32],
    row: int,
    end: int,
    panel: int,
    out: NDArray[np.float32],
    adding: bool,
) -> None:
    """One panel's channels for the rows from ``row`` to ``end``: four at a time, or one."""
    while row < end:
        if end - row == 1:
            _times_one(weights, scales, units, numbers, steps, zeros, row, panel, out, adding)
            row += 1
        else:
            _times_four(weights, scales, units, numbers, steps, zeros, row, end, panel, out, adding)
            row += 4


@compiled
def _times_one(
    weights: NDArray[np.int8],
    scales: NDArray[np.uint16],
    units: NDArray[np.float32],
    numbers: NDArray[np.int16],
    steps: NDArray[np.float32],
    zeros: NDArray[np.float32],
    row: int,
    panel: int,
    out: NDArray[np.float32],
    adding: bool,
) -> None:
    groups = zeros.shape[1]
    at, scale_at = panel * groups * _GROUP_BYTES, panel * groups * LANES
    x_at = row * groups * INT4_GROUP
    y = no_floats()
    for group in range(groups):
        total, sixteenfold = no_ints(), no_ints()
        for block in range(_BLOCKS):
            w = _fetch(weights, at + block * _BLOCK_BYTES)
            x0, x1 = spread_pair(numbers, x_at), spread_pair(numbers, x_at + 2)
            x2, x3 = spread_pair(numbers, x_at + _HALF), spread_pair(numbers, x_at + _HALF + 2)
            total = multiply_pairs(total, nibbles_0(w), x0)
            sixteenfold = multiply_pairs(sixteenfold, nibbles_1_times_16(w), x1)
            total = multiply_pairs(total, nibbles_2(w), x2)
            sixteenfold = multiply_pairs(sixteenfold, nibbles_3_times_16(w), x3)
            x_at += 4
        x_at += _HALF
        total = add_sixteenths(total, sixteenfold)
        scale = low_bytes(scales, scale_at)
        zero = scale * high_bytes(scales, scale_at)
        y = _add_group(y, total, scale, zero, steps, zeros, row, group)
        at, scale_at = at + _GROUP_BYTES, scale_at + LANES
    _finish(out, row, panel, y, units, adding)


@compiled
def _times_four(
    weights: NDArray[np.int8],
    scales: NDArray[np.uint16],
    units: NDArray[np.float32],
    numbers: NDArray[np.int16],
    steps: NDArray[np.float32],
    zeros: NDArray[np.float32],
    row: int,
    end: int,
    panel: int,
    out: NDArray[np.float32],
    adding: bool,
) -> None:
    """As `_times_one`, for four rows; when there are fewer, the last is computed again."""
    row1, row2, row3 = min(row + 1, end - 1), min(row + 2, end - 1), min(row + 3, end - 1)
    groups = zeros.shape[1]
    at, scale_at, inputs = panel * groups * _GROUP_BYTES, panel * groups * LANES, numbers.shape[1]
    x0, x1, x2, x3 = row * inputs, row1 * inputs, row2 * inputs, row3 * inputs
    y0, y1, y2, y3 = no_floats(), no_floats(), no_floats(), no_floats()
    for group in range(groups):
        total0, total1, total2, total3 = no_ints(), no_ints(), no_ints(), no_ints()
        for block in range(_BLOCKS):
            words = _fetch(weights, at + block * _BLOCK_BYTES)
            v, w = nibbles_0(words), nibbles_1(words)
            total0 = _add_two(total0, v, w, numbers, x0 + 4 * block)
            total1 = _add_two(total1, v, w, numbers, x1 + 4 * block)
            total2 = _add_two(total2, v, w, numbers, x2 + 4 * block)
            total3 = _add_two(total3, v, w, numbers, x3 + 4 * block)
        for block in range(_BLOCKS):
            words = load_words(weights, at + block * _BLOCK_BYTES)
            v, w = nibbles_2(words), nibbles_3(words)
            total0 = _add_two(total0, v, w, numbers, x0 + _HALF + 4 * block)
            total1 = _add_two(total1, v, w, numbers, x1 + _HALF + 4 * block)
            total2 = _add_two(total2, v, w, numbers, x2 + _HALF + 4 * block)
            total3 = _add_two(total3, v, w, numbers, x3 + _HALF + 4 * block)
        scale = low_bytes(scales, scale_at)
        zero = scale * high_bytes(scales, scale_at)
        y0 = _add_group(y0, total0, scale, zero, steps, zeros, row, group)
        y1 = _add_group(y1, total1, scale, zero, steps, zeros, row1, group)
        y2 = _add_group(y2, total2, scale, zero, steps, zeros, row2, group)
        y3 = _add_group(y3, total3, scale, zero, steps, zeros, row3, group)
        x0, x1, x2, x3 = x0 + INT4_GROUP, x1 + INT4_GROUP, x2 + INT4_GROUP, x3 + INT4_GROUP
        at, scale_at = at + _GROUP_BYTES, scale_at + LANES
    _finish(out, row, panel, y0, units, adding)
    if row1 > row:
        _finish(out, row1, panel, y1, units, adding)
    if row2 > row1:
        _finish(out, row2, panel, y2, units, adding)
    if row3 > row2:
        _finish(out, row3, panel, y3, units, adding)


@compiled
def _fetch(weights: NDArray[np.int8], at: int) -> Vector:
    """A block of weights; one that comes later is sent for."""
    prefetch(weights, at + AHEAD)
    return load_words(weights, at)


@compiled
def _add_two(total: Vector, v: Vector, w: Vector, numbers: NDArray[np.int16], at: int) -> Vector:
    """``total``, with two pairs of inputs of each channel added."""
    total = multiply_pairs(total, v, spread_pair(numbers, at))
    return multiply_pairs(total, w, spread_pair(numbers, at + 2))


@compiled
def _add_group(
    y: Vector,
    total: Vector,
    scale: Vector,
    zero: Vector,
    steps: NDArray[np.float32],
    zeros: NDArray[np.float32],
    row: int,
    group: int,
) -> Vector:
    """``y``, with a small group of a row added."""
    y = add_multiplied(y, floats_of(total), scale * steps[row, group // 2])
    return add_product(y, zeros, row * zeros.shape[1] + group, zero)


@compiled
def _finish(
    out: NDArray[np.float32],
    row: int,
    panel: int,
    y: Vector,
    units: NDArray[np.float32],
    adding: bool,
) -> None:
    at = row * out.shape[1] + panel * LANES
    before = load_floats(out, at) if adding else no_floats()
    store_floats(out, at, add_multiplied(before, y, load_floats(units, panel * LANES)))
