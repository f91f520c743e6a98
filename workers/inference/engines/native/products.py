"""Matrix products: weights of 8 or 4 bits times activations of 16 bits, by groups.

The weights of a linear layer (channels x inputs) are held as `layout` says, and a row of
activations with a step for each group of 64:

    x[k] = step[k // 64] * q[k]                    q: int16, step: float32

so that, with sums of integers that are exact (64 * 127 * 32639 < 2**31), in 8 bits
    y[c] = sum over groups g of  scale[c, g] * step[g] * (sum over k in g of w[c, k] * q[k])

and in 4 bits, where two small groups g share a step, and a zero point needs only the sum of q,

    y[c] = unit[c] * sum over small groups g of  scale[c, g] * step[g] *
           (sum over k in g of w[c, k] * q[k]  -  zero[c, g] / 16 * sum over k in g of q[k])

and likewise in 6 bits, with 32 for a zero point.

16 bits for activations instead of llama.cpp's 8 cost nothing with `multiply_pairs`, and are as
good as float32: what is lost is lost by the weights alone. Where a processor multiplies bytes
(`multiply_fours`), those for 4-bit and 6-bit weights get 8 bits and a step for each small group: to
what 4 bits lose, that adds a hundredth. (To what 8 bits lose, as much again; see docs/LOG.md.)

Sixteen channels are one panel; its weights are read once, in order, for as many rows at a time as
fit into registers. Each is computed by the same operations in the same order, however many there
are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.inference.engines.native.compiler import compiled, compiled_for, inlined
from workers.inference.engines.native.dot_products import DOTS, cut_numbers, times_int8
from workers.inference.engines.native.lanes import (
    Rows,
    Vector,
    add_multiplied,
    add_product,
    following,
    larger,
    largest_of,
    load_float,
    load_floats,
    magnitudes,
    no_floats,
    no_floats_of,
    place,
    store_floats,
    store_interleaved,
    store_rounded,
    times,
)
from workers.inference.engines.native.layout import GROUP, INT4_GROUP, LANES
from workers.inference.engines.native.operands import (
    WIDENED,
    Activations,
    Counters,
    Matrix,
    Scratch,
)
from workers.inference.engines.native.pairs import (
    add_scaled,
    even_bytes,
    floats_of,
    high_bytes,
    load_fours,
    load_pairs,
    load_scales,
    load_weights,
    load_words,
    low_bytes,
    lower_nibbles,
    multiply_fours,
    multiply_pairs,
    nibbles_0,
    nibbles_1,
    nibbles_2,
    nibbles_3,
    no_ints_of,
    odd_bytes,
    prefetch,
    sixes_0,
    sixes_1,
    sixes_2,
    sixes_3,
    store_pairs,
    upper_nibbles,
)
from workers.inference.engines.native.phases import finish_item, next_item, wait_for_all

_STEPS = np.float32(32639)
"""127 * 257: the largest number whose halves both fit into 8 bits (see `dot_products`)."""
_SMALL_STEPS, _ZERO_STEP = np.float32(127), np.float32(-1 / 16)
FOURS_FIT = DOTS or "AVX512_VNNI" in compiled_for
"""Whether weights of 4 bits are multiplied as bytes, by activations of 8 bits."""
_PANELS = 4
"""Panels of an item: 64 channels."""
_EIGHT_FIT = "AVX512F" in compiled_for
"""Whether eight sums stay in registers. They are 3 to 23 % faster then than twice four."""
_FOUR, _EIGHT = tuple(range(4)), tuple(range(8))
_SEVERAL = (0, 1) if DOTS else _FOUR
"""Rows of 8-bit weights, with two sums each where they are multiplied by ``sdot``."""
_ROWS = 16
"""Rows whose activations stay in the nearest cache while a panel after the other passes."""
_MANY = 16
"""Rows for which a panel's weights are widened to 16 bits once, instead of for every four rows: a
tenth faster in 8 bits and a quarter in 4."""
_AHEAD = 2048
"""Bytes to what is prefetched. What the processor foresees itself ends with a page."""
_WIDENED_GROUPS = WIDENED // GROUP
_BLOCKS, _HALF, _BLOCK_BYTES = INT4_GROUP // 8, INT4_GROUP // 2, 4 * LANES
_INT6_BYTES = 6 * _BLOCK_BYTES
_INT6_ZERO = np.float32(32 * 16)


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
    if into.zeros.size:
        _quantize_small(x, row, 2 * group, step, into)
        _quantize_small(x, row, 2 * group + 1, step, into)
    if DOTS:
        cut_numbers(into.numbers, at)
        cut_numbers(into.numbers, at + INT4_GROUP)


@compiled
def _quantize_small(
    x: NDArray[np.float32], row: int, group: int, step: np.float32, into: Activations
) -> None:
    """What weights of 4 bits take of 32 numbers; ``step``: of those in 16 bits."""
    k, total = group * INT4_GROUP, 0
    if FOURS_FIT:
        at = row * x.shape[1] + k
        left, right = load_floats(x, at), load_floats(x, at + LANES)
        largest = largest_of(larger(magnitudes(left), magnitudes(right)))
        step = largest / _SMALL_STEPS
        factor = _SMALL_STEPS / largest if largest > 0 else np.float32(0)
        into_at = row * into.small_numbers.shape[1] + k
        store_interleaved(into.small_numbers, into_at, left, right, factor)
    for number in range(k, k + INT4_GROUP):
        total += into.small_numbers[row, number] if FOURS_FIT else into.numbers[row, number]
    into.small_steps[row, group] = step
    into.zeros[row, group] = np.float32(total) * (step * _ZERO_STEP)


@compiled
def project(
    member: int,
    counters: Counters,
    phase: int,
    matrix: Matrix,
    layer: int,
    x: Activations,
    rows: int,
    out: NDArray[np.float32],
    scratch: Scratch,
) -> None:
    """A phase: ``out = W x``, or ``out += W x``, for all rows. ``out`` is (rows, channels)."""
    items = begin_projecting(member, counters, phase, matrix, layer, x, rows, out, scratch)
    wait_for_all(counters, phase, items)


@compiled
def begin_projecting(
    member: int,
    counters: Counters,
    phase: int,
    matrix: Matrix,
    layer: int,
    x: Activations,
    rows: int,
    out: NDArray[np.float32],
    scratch: Scratch,
) -> int:
    """`project`, without waiting for the items that others have taken; how many there are."""
    weights, scales, units = matrix.weights[layer], matrix.scales[layer], matrix.units[layer]
    own = Matrix(matrix.bits, weights, scales, units, matrix.adds)
    panels = weights.size * 8 // (LANES * x.numbers.shape[1] * matrix.bits)
    items: int = (panels + _PANELS - 1) // _PANELS
    widened, partial = scratch.widened[member], scratch.partial[member]
    item = next_item(counters, phase)
    while item < items:
        first, end = item * _PANELS, min(panels, (item + 1) * _PANELS)
        if not _EIGHT_FIT and not DOTS and rows >= _MANY and matrix.bits != 6:
            for panel in range(first, end):
                panel_of_many(own, x, rows, panel, out, widened, partial)
        else:
            for begin in range(0, rows, _ROWS):
                for panel in range(first, end):
                    panel_of_few(own, x, begin, min(rows, begin + _ROWS), panel, out)
        finish_item(counters, phase)
        item = next_item(counters, phase)
    return items


@compiled
def panel_of_few(
    matrix: Matrix, x: Activations, row: int, end: int, panel: int, out: NDArray[np.float32]
) -> None:
    """One panel's channels for the rows from ``row`` to ``end``: as many at a time as fit."""
    while row < end:
        # No function in between: every call that passes arrays counts references, atomically.
        if matrix.bits == 8:
            if end - row == 1:
                _int8(matrix, x, row, panel, out)
                row += 1
            elif _EIGHT_FIT and end - row >= 8:
                _int8(matrix, x, following(_EIGHT, row, end - 1), panel, out)
                row += 8
            else:
                # When there are fewer, the last is computed more than once.
                _int8(matrix, x, following(_SEVERAL, row, end - 1), panel, out)
                row += len(_SEVERAL)
        elif matrix.bits == 6:
            if end - row == 1:
                _times_int6(matrix, x, row, panel, out)
                row += 1
            elif _EIGHT_FIT and end - row >= 8:
                _times_int6(matrix, x, following(_EIGHT, row, end - 1), panel, out)
                row += 8
            else:
                _times_int6(matrix, x, following(_FOUR, row, end - 1), panel, out)
                row += 4
        elif end - row == 1:
            _times_int4(matrix, x, row, panel, out)
            row += 1
        elif _EIGHT_FIT and end - row >= 8:
            _times_int4(matrix, x, following(_EIGHT, row, end - 1), panel, out)
            row += 8
        else:
            _times_int4(matrix, x, following(_FOUR, row, end - 1), panel, out)
            row += 4


@compiled
def panel_of_many(
    matrix: Matrix,
    x: Activations,
    rows: int,
    panel: int,
    out: NDArray[np.float32],
    widened: NDArray[np.int16],
    partial: NDArray[np.float32],
) -> None:
    """As `panel_of_few`, for all rows, a part of the inputs after the other."""
    groups = x.steps.shape[1]
    for first in range(0, groups, _WIDENED_GROUPS):
        end, at = min(groups, first + _WIDENED_GROUPS), (panel * groups + first) * GROUP * LANES
        if matrix.bits == 8:
            _widen_int8(matrix.weights, at, (end - first) * GROUP, widened)
            _times_widened_int8(matrix, x, rows, panel, first, end, out, widened, partial)
        else:
            _widen_int4(matrix.weights, at // 2, (end - first) * GROUP, widened)
            _times_widened_int4(matrix, x, rows, panel, first, end, out, widened, partial)


@compiled
def _widen_int8(weights: NDArray[np.int8], at: int, inputs: int, pairs: NDArray[np.int16]) -> None:
    """Put a panel's weights for so many inputs into ``pairs``, as `multiply_pairs` takes them, in
    the order of the inputs."""
    for to in range(0, inputs * LANES, 2 * LANES):
        store_pairs(pairs, to, load_weights(weights, at + to))


@compiled
def _widen_int4(weights: NDArray[np.int8], at: int, inputs: int, pairs: NDArray[np.int16]) -> None:
    """As `_widen_int8`."""
    for to in range(0, inputs * LANES, INT4_GROUP * LANES):
        for block in range(_BLOCKS):
            words = load_words(weights, at)
            into = to + block * 4 * LANES
            store_pairs(pairs, into, nibbles_0(words))
            store_pairs(pairs, into + 2 * LANES, nibbles_1(words))
            store_pairs(pairs, into + _HALF * LANES, nibbles_2(words))
            store_pairs(pairs, into + (_HALF + 2) * LANES, nibbles_3(words))
            at += _BLOCK_BYTES


@compiled
def _times_widened_int8(
    matrix: Matrix,
    x: Activations,
    count: int,
    panel: int,
    first: int,
    end: int,
    out: NDArray[np.float32],
    weights: NDArray[np.int16],
    partial: NDArray[np.float32],
) -> None:
    """A part of `_times_int8`, for all rows, by the same operations in the same order."""
    scales, groups, inputs = matrix.scales, x.steps.shape[1], x.numbers.shape[1]
    for row in range(0, count, 4):
        rows = following(_FOUR, row, count - 1)
        at, k, scale_at = 0, first * GROUP, (panel * groups + first) * LANES
        out_at, y_at = place(rows, out.shape[1], panel * LANES), place(rows, LANES, 0)
        y = no_floats_of(rows)
        if first:
            y = load_floats(partial, y_at)
        elif matrix.adds:
            y = load_floats(out, out_at)
        for group in range(first, end):
            total = no_ints_of(rows)
            for _ in range(GROUP // 2):
                x_at = place(rows, inputs, k)
                total = multiply_pairs(total, load_pairs(weights, at), x.numbers, x_at)
                at, k = at + 2 * LANES, k + 2
            step = load_float(x.steps, place(rows, groups, group))
            y = add_scaled(y, total, scales, scale_at, step)
            scale_at += LANES
        if end == groups:
            store_floats(out, out_at, y)
        else:
            store_floats(partial, y_at, y)


@compiled
def _times_widened_int4(
    matrix: Matrix,
    x: Activations,
    count: int,
    panel: int,
    first: int,
    end: int,
    out: NDArray[np.float32],
    weights: NDArray[np.int16],
    partial: NDArray[np.float32],
) -> None:
    """As `_times_widened_int8`, of `_times_int4`."""
    scales, groups, inputs = matrix.scales, x.steps.shape[1], x.numbers.shape[1]
    small = x.zeros.shape[1]
    for row in range(0, count, 4):
        rows = following(_FOUR, row, count - 1)
        at, k, scale_at = 0, first * GROUP, (panel * small + 2 * first) * LANES
        out_at, y_at = place(rows, out.shape[1], panel * LANES), place(rows, LANES, 0)
        y = load_floats(partial, y_at) if first else no_floats_of(rows)
        for group in range(2 * first, 2 * end):
            total = no_ints_of(rows)
            for _ in range(INT4_GROUP // 2):
                x_at = place(rows, inputs, k)
                total = multiply_pairs(total, load_pairs(weights, at), x.numbers, x_at)
                at, k = at + 2 * LANES, k + 2
            scale = low_bytes(scales, scale_at)
            step = load_float(x.small_steps, place(rows, small, group))
            y = add_multiplied(y, floats_of(total), times(scale, step))
            zero = scale * high_bytes(scales, scale_at)
            y = add_product(y, x.zeros, place(rows, small, group), zero)
            scale_at += LANES
        if end == groups:
            before = load_floats(out, out_at) if matrix.adds else no_floats_of(rows)
            unit = load_floats(matrix.units, panel * LANES)
            store_floats(out, out_at, add_multiplied(before, y, unit))
        else:
            store_floats(partial, y_at, y)


@compiled
def _times_int8(
    matrix: Matrix, x: Activations, rows: Rows, panel: int, out: NDArray[np.float32]
) -> None:
    """One panel's channels for one row, or for a tuple of rows together."""
    weights, scales, groups = matrix.weights, matrix.scales, x.steps.shape[1]
    at, scale_at = panel * groups * GROUP * LANES, panel * groups * LANES
    out_at = place(rows, out.shape[1], panel * LANES)
    y = load_floats(out, out_at) if matrix.adds else no_floats_of(rows)
    k = 0
    for group in range(groups):
        total = no_ints_of(rows)
        for _ in range(GROUP // 2):
            prefetch(weights, at + _AHEAD)
            x_at = place(rows, groups * GROUP, k)
            total = multiply_pairs(total, load_weights(weights, at), x.numbers, x_at)
            at += 2 * LANES
            k += 2
        step = load_float(x.steps, place(rows, groups, group))
        y = add_scaled(y, total, scales, scale_at, step)
        scale_at += LANES
    store_floats(out, out_at, y)


@inlined
def _sum_of_pairs(weights: NDArray[np.int8], at: int, x: Activations, rows: Rows, k: int) -> Vector:
    """The sum for a small group that begins with the input ``k``."""
    total, inputs = no_ints_of(rows), x.numbers.shape[1]
    # Two of a word's four numbers at a time, so that all that is in use stays in registers.
    for block in range(_BLOCKS):
        prefetch(weights, at + block * _BLOCK_BYTES + _AHEAD)
        words = load_words(weights, at + block * _BLOCK_BYTES)
        x_at = place(rows, inputs, k + 4 * block)
        total = multiply_pairs(total, nibbles_0(words), x.numbers, x_at)
        x_at = place(rows, inputs, k + 4 * block + 2)
        total = multiply_pairs(total, nibbles_1(words), x.numbers, x_at)
    for block in range(_BLOCKS):
        words = load_words(weights, at + block * _BLOCK_BYTES)
        x_at = place(rows, inputs, k + 4 * block + _HALF)
        total = multiply_pairs(total, nibbles_2(words), x.numbers, x_at)
        x_at = place(rows, inputs, k + 4 * block + _HALF + 2)
        total = multiply_pairs(total, nibbles_3(words), x.numbers, x_at)
    return total


@inlined
def _add_bytes(total: Vector, fours: Vector, x: Activations, rows: Rows, k: int, n: int) -> Vector:
    """Add the products of the inputs k + 2n, k + 2n + 16, k + 2n + 1 and k + 2n + 17."""
    x_at = place(rows, x.small_numbers.shape[1], k + 4 * n)
    return multiply_fours(total, fours, x.small_numbers, x_at)


@inlined
def _add_pairs(total: Vector, fours: Vector, x: Activations, rows: Rows, k: int, n: int) -> Vector:
    """As `_add_bytes`, of 16-bit activations."""
    x_at = place(rows, x.numbers.shape[1], k + 2 * n)
    total = multiply_pairs(total, even_bytes(fours), x.numbers, x_at)
    x_at = place(rows, x.numbers.shape[1], k + 2 * n + _HALF)
    return multiply_pairs(total, odd_bytes(fours), x.numbers, x_at)


_add_fours = _add_bytes if FOURS_FIT else _add_pairs


@inlined
def _sum_of_bytes(weights: NDArray[np.int8], at: int, x: Activations, rows: Rows, k: int) -> Vector:
    """As `_sum_of_pairs`, of 8-bit activations."""
    total = no_ints_of(rows)
    for block in range(_BLOCKS):
        prefetch(weights, at + block * _BLOCK_BYTES + _AHEAD)
        fours = load_fours(weights, at + block * _BLOCK_BYTES)
        total = _add_fours(total, lower_nibbles(fours), x, rows, k, 2 * block)
        total = _add_fours(total, upper_nibbles(fours), x, rows, k, 2 * block + 1)
    return total


_sum_int4 = _sum_of_bytes if FOURS_FIT else _sum_of_pairs


@compiled
def _times_int6(
    matrix: Matrix, x: Activations, rows: Rows, panel: int, out: NDArray[np.float32]
) -> None:
    """As `_times_int8`."""
    weights, scales, groups = matrix.weights, matrix.scales, x.zeros.shape[1]
    at = panel * groups * _INT6_BYTES
    out_at = place(rows, out.shape[1], panel * LANES)
    y = load_floats(out, out_at) if matrix.adds else no_floats_of(rows)
    for group in range(groups):
        total, k = no_ints_of(rows), group * INT4_GROUP
        for half in range(2):
            for line in range(half, 6, 2):
                prefetch(weights, at + line * _BLOCK_BYTES + _AHEAD)
            uppers = load_fours(weights, at + (4 + half) * _BLOCK_BYTES)
            fours = load_fours(weights, at + 2 * half * _BLOCK_BYTES)
            total = _add_fours(total, sixes_0(fours, uppers), x, rows, k, 4 * half)
            total = _add_fours(total, sixes_1(fours, uppers), x, rows, k, 4 * half + 1)
            fours = load_fours(weights, at + (2 * half + 1) * _BLOCK_BYTES)
            total = _add_fours(total, sixes_2(fours, uppers), x, rows, k, 4 * half + 2)
            total = _add_fours(total, sixes_3(fours, uppers), x, rows, k, 4 * half + 3)
        scale = load_scales(scales, (panel * groups + group) // 2 * LANES)
        step = load_float(x.small_steps, place(rows, groups, group))
        y = add_multiplied(y, floats_of(total), times(scale, step))
        y = add_product(y, x.zeros, place(rows, groups, group), scale * _INT6_ZERO)
        at += _INT6_BYTES
    store_floats(out, out_at, y)


@compiled
def _times_int4(
    matrix: Matrix, x: Activations, rows: Rows, panel: int, out: NDArray[np.float32]
) -> None:
    """As `_times_int8`."""
    weights, scales, groups = matrix.weights, matrix.scales, x.zeros.shape[1]
    at, scale_at = panel * groups * _BLOCKS * _BLOCK_BYTES, panel * groups * LANES
    y = no_floats_of(rows)
    for group in range(groups):
        total = _sum_int4(weights, at, x, rows, group * INT4_GROUP)
        scale = low_bytes(scales, scale_at)
        step = load_float(x.small_steps, place(rows, groups, group))
        y = add_multiplied(y, floats_of(total), times(scale, step))
        zero = scale * high_bytes(scales, scale_at)
        y = add_product(y, x.zeros, place(rows, groups, group), zero)
        at, scale_at = at + _BLOCKS * _BLOCK_BYTES, scale_at + LANES
    out_at = place(rows, out.shape[1], panel * LANES)
    before = load_floats(out, out_at) if matrix.adds else no_floats_of(rows)
    unit = load_floats(matrix.units, panel * LANES)
    store_floats(out, out_at, add_multiplied(before, y, unit))


_int8 = times_int8 if DOTS else _times_int8
