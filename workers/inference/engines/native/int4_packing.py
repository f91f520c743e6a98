"""Rounds matrices to 4 bits and puts them in order; `layout` says how.

A group's scale and zero point are those of the line that is nearest to its numbers by squared
error, among the lines that 21 ways of rounding lead to: as llama.cpp's ``make_qkx2_quants``, but
with the zero point always inside the group. Sixteen channels are searched at once, one a lane.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.inference.engines.native.compiler import compiled, entry
from workers.inference.engines.native.lanes import (
    Vector,
    add_multiplied,
    larger,
    load_floats,
    no_floats,
    rounded,
    smaller,
    spread,
    store_floats,
    store_rounded,
    where_larger,
)
from workers.inference.engines.native.layout import (
    GROUP,
    INT4_GROUP,
    LANES,
    PANEL,
    packed_sizes,
    padded,
)

_LARGEST, _MOST_STEPS = np.float32(15), np.float32(255)
_PARTS = np.float32(16)
"""Of a step, in which the zero point is given."""
_FIRST_STEPS, _WIDER = np.float32(14), np.float32(0.1)
_TRIES = 21
"""The group's whole width is taken for 14, 14.1 ... 16 steps."""


def pack_int4(
    matrix: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.uint16], NDArray[np.float32]]:
    """The packed weights, scales and units of a matrix of (channels, inputs), all flat."""
    channels, inputs = (padded(n, to) for n, to in zip(matrix.shape, (PANEL, GROUP), strict=True))
    whole = np.zeros((channels, inputs), np.float32)
    whole[: matrix.shape[0], : matrix.shape[1]] = matrix
    columns = np.ascontiguousarray(whole.reshape(-1, PANEL, inputs).transpose(0, 2, 1))
    weights, scales = packed_sizes(channels, inputs, 4)
    words, codes = np.zeros(weights // 2, np.uint16), np.zeros(scales, np.uint16)
    units = np.zeros(channels, np.float32)
    lines = np.zeros((inputs // INT4_GROUP, 2, PANEL), np.float32)
    _pack(columns, words, codes, units, lines, np.zeros((INT4_GROUP, PANEL), np.float32))
    return words.view(np.int8), codes, units


def unpack_int4(
    weights: NDArray[np.int8],
    scales: NDArray[np.uint16],
    units: NDArray[np.float32],
    channels: int,
    inputs: int,
) -> NDArray[np.float32]:
    """The matrix that is computed with in place of the one that was packed."""
    panels, width = padded(channels, PANEL) // PANEL, padded(inputs, GROUP)
    words = weights.view(np.uint16).reshape(panels, -1, 1, 1, INT4_GROUP // 8, PANEL, 2)
    numbers = (words >> np.array([[0, 4], [8, 12]], np.uint16).reshape(2, 2, 1, 1, 1)) & 15
    numbers = numbers.transpose(0, 5, 1, 2, 4, 3, 6).reshape(panels, PANEL, -1, INT4_GROUP)
    codes = scales.reshape(panels, -1, PANEL, 1).transpose(0, 2, 1, 3)
    zeros = (codes >> 8).astype(np.float32) / _PARTS
    steps = (codes & 255) * units.reshape(panels, PANEL, 1, 1)
    matrix = (numbers - zeros) * steps
    return np.ascontiguousarray(matrix.reshape(-1, width)[:channels, :inputs], np.float32)


@entry
def _pack(
    columns: NDArray[np.float32],
    words: NDArray[np.uint16],
    scales: NDArray[np.uint16],
    units: NDArray[np.float32],
    lines: NDArray[np.float32],
    group: NDArray[np.float32],
) -> None:
    """``columns`` is (panels, inputs, 16). ``lines`` and ``group`` are scratch for one panel's
    scales and offsets, and for one group."""
    panels, groups = columns.shape[0], lines.shape[0]
    for panel in range(panels):
        largest = no_floats()
        for g in range(groups):
            at = (panel * groups + g) * INT4_GROUP * LANES
            _fit(columns, at, lines, 2 * g * LANES, group)
            largest = larger(largest, load_floats(lines, 2 * g * LANES))
        unit = largest / _MOST_STEPS
        store_floats(units, panel * LANES, unit)
        for g in range(groups):
            at = (panel * groups + g) * INT4_GROUP * LANES
            scale_at = (panel * groups + g) * LANES
            _round(columns, at, lines, 2 * g * LANES, unit, scales, scale_at, group)
            _interleave(group, words, at // 4)


@compiled
def _fit(
    columns: NDArray[np.float32],
    at: int,
    lines: NDArray[np.float32],
    line_at: int,
    group: NDArray[np.float32],
) -> None:
    """Find scale s and offset o for the group at ``columns[at]``: numbers are about s q - o.

    With u = (number - lowest) / width, the line u = a q + b through all the u, given
    q = round(f u), follows from the sums of q, q**2 and q u; b is where the offset would be
    negative, if it went past the place of zero.
    """
    lowest, highest = no_floats(), no_floats()
    for k in range(INT4_GROUP):
        lowest = smaller(lowest, load_floats(columns, at + k * LANES))
        highest = larger(highest, load_floats(columns, at + k * LANES))
    width = highest - lowest
    inverse = where_larger(width, no_floats(), spread(np.float32(1)) / width, no_floats())
    sum_u = no_floats()
    for k in range(INT4_GROUP):
        u = (load_floats(columns, at + k * LANES) - lowest) * inverse
        store_floats(group, k * LANES, u)
        sum_u = sum_u + u
    zero, count = (no_floats() - lowest) * inverse, np.float32(INT4_GROUP)
    # For numbers that are all the same, through which no one line leads.
    least, scale, offset = spread(np.float32(1e30)), width / _LARGEST, zero * width
    for attempt in range(_TRIES):
        factor = _FIRST_STEPS + _WIDER * np.float32(attempt)
        sum_q, sum_qq, sum_qu = no_floats(), no_floats(), no_floats()
        for k in range(INT4_GROUP):
            u = load_floats(group, k * LANES)
            q = smaller(rounded(u * factor), spread(_LARGEST))
            sum_q = sum_q + q
            sum_qq = add_multiplied(sum_qq, q, q)
            sum_qu = add_multiplied(sum_qu, q, u)
        a = (sum_qu * count - sum_q * sum_u) / (sum_qq * count - sum_q * sum_q)
        b = (sum_u - a * sum_q) / count
        a = where_larger(b, zero, (sum_qu - zero * sum_q) / sum_qq, a)
        b = smaller(b, zero)
        error = a * (a * sum_qq + np.float32(2) * (b * sum_q - sum_qu))
        error = error + b * (b * count - np.float32(2) * sum_u)
        scale = where_larger(least, error, a * width, scale)
        offset = where_larger(least, error, (zero - b) * width, offset)
        least = smaller(error, least)
    store_floats(lines, line_at, scale)
    store_floats(lines, line_at + LANES, offset)


@compiled
def _round(
    columns: NDArray[np.float32],
    at: int,
    lines: NDArray[np.float32],
    line_at: int,
    unit: Vector,
    scales: NDArray[np.uint16],
    scale_at: int,
    group: NDArray[np.float32],
) -> None:
    """Round the scale and the zero point, then the numbers by them, into ``group``."""
    nothing = no_floats()
    scale = where_larger(unit, nothing, load_floats(lines, line_at) / unit, nothing)
    scale = larger(smaller(rounded(scale), spread(_MOST_STEPS)), spread(np.float32(1)))
    step = scale * unit
    inverse = where_larger(step, nothing, spread(np.float32(1)) / step, nothing)
    zero = rounded(load_floats(lines, line_at + LANES) * inverse * _PARTS)
    zero = smaller(zero, spread(_MOST_STEPS))
    store_rounded(scales, scale_at, scale + zero * np.float32(256), np.float32(1))
    for k in range(INT4_GROUP):
        number = load_floats(columns, at + k * LANES) * inverse + zero / _PARTS
        number = larger(smaller(rounded(number), spread(_LARGEST)), nothing)
        store_floats(group, k * LANES, number)


@compiled
def _interleave(group: NDArray[np.float32], words: NDArray[np.uint16], at: int) -> None:
    """Put a group's numbers of 0 to 15 into words, from ``words[at]``."""
    for first in range(0, INT4_GROUP // 2, 4):
        for channel in range(PANEL):
            for k in range(first, first + 2):
                word = np.int64(0)
                for place in range(4):
                    number = group[k + 2 * (place % 2) + 16 * (place // 2), channel]
                    word += np.int64(number) << (4 * place)
                words[at] = word
                at += 1
