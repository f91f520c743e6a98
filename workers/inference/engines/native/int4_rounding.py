"""The kernel that rounds a matrix to 4 bits; `int4_packing` calls it.

A group's scale and zero point are those of the line that is nearest to its numbers by squared
error, among the lines that 21 ways of rounding lead to: as llama.cpp's ``make_qkx2_quants``, but
with the zero point always inside the group. Sixteen channels are searched at once, one a lane.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.inference.engines.native.compiler import compiled
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
from workers.inference.engines.native.layout import INT4_GROUP, LANES, PANEL
from workers.inference.engines.native.operands import SmallPacking

_LARGEST, _MOST_STEPS = np.float32(15), np.float32(255)
_PARTS = np.float32(16)
"""Of a step, in which the zero point is given."""
_FIRST_STEPS, _WIDER = np.float32(14), np.float32(0.1)
_TRIES = 21
"""The group's whole width is taken for 14, 14.1 ... 16 steps."""


@compiled
def pack_int4(member: int, operands: SmallPacking) -> None:
    """All of a matrix, by one thread."""
    columns, words, scales, units, lines, group = operands
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
