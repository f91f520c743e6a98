"""Products of 8-bit weights where an ARM processor adds four products of int8 at once, by ``sdot``.

The weights lie as `layout` says. Of every 32 activations q of 16 bits, both halves are kept,

    q = 256 * upper + lower                        upper, lower: int8

all the upper ones first, in the order 0, 16, 1, 17 ... 15, 31. Two pairs of weights are brought
into that order as they are used, by one instruction for eight channels. So a file of packed weights
is the same for all processors, and the sum of integers,

    sum of w * q  =  256 * (sum of w * upper)  +  sum of w * lower

is as exact as with `pairs.multiply_pairs`, which takes four times as many instructions.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numpy.typing import NDArray

from workers.inference.engines.native.compiler import compiled, compiled_for, operation
from workers.inference.engines.native.lanes import (
    Builder,
    Bytes,
    Fours,
    Ints,
    Pairs,
    Rows,
    Value,
    constant,
    load_float,
    load_floats,
    no_floats_of,
    place,
    pointer,
    store_floats,
)
from workers.inference.engines.native.layout import GROUP, INT4_GROUP, LANES
from workers.inference.engines.native.operands import Activations, Matrix
from workers.inference.engines.native.pairs import (
    add_scaled,
    dots,
    joined,
    no_ints_of,
    part,
    prefetch,
)

DOTS = "ASIMDDP" in compiled_for

_AHEAD = 2048
_BYTE, _INT = ir.IntType(8), ir.IntType(32)
_PAIR = 2 * LANES
"""Bytes of two weights of a panel."""
_APART = INT4_GROUP // 2 * LANES
"""Bytes between the weights of two inputs that are used together."""


@operation(types.void, types.Array, types.intp)
def cut_numbers(builder: Builder, array: Value, at: Value) -> None:
    """Make of 32 int16 from ``array[at]`` their upper and their lower halves, as said above."""
    where = pointer(builder, array, at, Pairs.vector)
    numbers = builder.load(where, align=2)
    numbers = _by_turns(
        builder, part(builder, numbers, 0, LANES), part(builder, numbers, LANES, LANES)
    )
    halves = ir.VectorType(_BYTE, 2 * LANES)
    lower = builder.trunc(numbers, halves)
    rest = builder.sub(numbers, builder.sext(lower, numbers.type))
    upper = builder.trunc(builder.ashr(rest, constant(8, numbers.type)), halves)
    whole = joined(builder, upper, lower)
    builder.store(whole, builder.bitcast(where, whole.type.as_pointer()), align=2)


@operation(Bytes, types.Array, types.intp)
def load_bytes(builder: Builder, array: Value, at: Value) -> Value:
    """Sixteen bytes, from the byte ``at`` of an array on."""
    array = builder.bitcast(array, _BYTE.as_pointer())
    return builder.load(pointer(builder, array, at, Bytes.vector), align=2)


@operation(Fours, types.Array, types.intp)
def load_two_pairs(builder: Builder, array: Value, at: Value) -> Value:
    """The 32 bytes from ``array[at]`` and those of the inputs that are used with them, by turns."""
    kind = ir.VectorType(_BYTE, _PAIR)
    first, second = (
        builder.load(pointer(builder, array, place, kind), align=1)
        for place in (at, builder.add(at, ir.Constant(at.type, _APART)))
    )
    return _by_turns(builder, first, second)


@operation(Ints, Ints, Fours, Bytes, types.intp)
def add_dots(builder: Builder, total: Value, weights: Value, numbers: Value, which: Value) -> Value:
    """``total`` and, in every lane i, the four bytes ``weights[4 * i]`` times ``numbers``' four
    of this number."""
    fours = builder.bitcast(numbers, ir.VectorType(_INT, 4))
    return dots(builder, total, weights, builder.extract_element(fours, which))


def _by_turns(builder: Builder, left: Value, right: Value) -> Value:
    count = left.type.count
    order = [place for k in range(count) for place in (k, count + k)]
    places = ir.Constant(ir.VectorType(_INT, 2 * count), order)
    return builder.shuffle_vector(left, right, places)


@operation(Ints, Ints, Ints)
def whole_of(builder: Builder, upper: Value, lower: Value) -> Value:
    """``256 * upper + lower``."""
    return builder.add(builder.shl(upper, constant(8)), lower)


@compiled
def times_int8(
    matrix: Matrix, x: Activations, rows: Rows, panel: int, out: NDArray[np.float32]
) -> None:
    """One panel's channels for one row, or for a tuple of rows together."""
    weights, scales, groups = matrix.weights, matrix.scales, x.steps.shape[1]
    at, scale_at = panel * groups * GROUP * LANES, panel * groups * LANES
    out_at = place(rows, out.shape[1], panel * LANES)
    y = load_floats(out, out_at) if matrix.adds else no_floats_of(rows)
    row_bytes = 2 * x.numbers.shape[1]
    for group in range(groups):
        upper, lower = no_ints_of(rows), no_ints_of(rows)
        for half in range(4):
            k = 2 * GROUP * group + 64 * (half // 2) + 16 * (half % 2)
            above = load_bytes(x.numbers, place(rows, row_bytes, k))
            below = load_bytes(x.numbers, place(rows, row_bytes, k + INT4_GROUP))
            prefetch(weights, at + _AHEAD)
            fours = load_two_pairs(weights, at)
            upper = add_dots(upper, fours, above, 0)
            lower = add_dots(lower, fours, below, 0)
            fours = load_two_pairs(weights, at + _PAIR)
            upper = add_dots(upper, fours, above, 1)
            lower = add_dots(lower, fours, below, 1)
            prefetch(weights, at + _AHEAD + _APART)
            fours = load_two_pairs(weights, at + 2 * _PAIR)
            upper = add_dots(upper, fours, above, 2)
            lower = add_dots(lower, fours, below, 2)
            fours = load_two_pairs(weights, at + 3 * _PAIR)
            upper = add_dots(upper, fours, above, 3)
            lower = add_dots(lower, fours, below, 3)
            at += 4 * _PAIR + (half % 2) * _APART
        step = load_float(x.steps, place(rows, groups, group))
        y = add_scaled(y, whole_of(upper, lower), scales, scale_at, step)
        scale_at += LANES
    store_floats(out, out_at, y)
