"""Whole numbers, sixteen lanes at a time: what the matrix products are made of (see `lanes`).

`Ints` are sixteen int32, `Pairs` sixteen pairs of int16.

`multiply_pairs` is the reason for all this. A product of two int16 with the neighbouring
product added, in int32, is one instruction on x86 (``vpmaddwd``), and does twice the work of a
float32 multiply-add of the same width. On ARM it is two (``smlal``), and does as much.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils

from workers.inference.engines.native.compiler import compiled_for, operation
from workers.inference.engines.native.lanes import (
    Builder,
    Bytes,
    Floats,
    Fours,
    Ints,
    Pairs,
    Value,
    constant,
    fused,
    pointer,
    repeated,
)
from workers.inference.engines.native.layout import LANES

_BYTE, _SHORT, _INT = ir.IntType(8), ir.IntType(16), ir.IntType(32)
_QUARTER = ir.VectorType(_INT, 4)


@operation(Ints, types.intp)
def no_ints_of(builder: Builder, row: Value) -> Value:
    """Sixteen int32 zeros for each row."""
    return ir.Constant(Ints.vector, None)


@operation(Floats, Ints)
def floats_of(builder: Builder, ints: Value) -> Value:
    """Sixteen int32 as float32."""
    return builder.sitofp(ints, Floats.vector)


@operation(Pairs, types.Array, types.intp)
def load_weights(builder: Builder, array: Value, at: Value) -> Value:
    """The 32 int8 from ``array[at]``, as sixteen pairs of int16."""
    where = pointer(builder, array, at, ir.VectorType(_BYTE, 2 * LANES))
    return builder.sext(builder.load(where, align=1), Pairs.vector)


@operation(Pairs, types.Array, types.intp)
def load_words(builder: Builder, array: Value, at: Value) -> Value:
    """The 64 bytes from ``array[at]``, as sixteen pairs of words with four nibbles each."""
    return builder.load(pointer(builder, array, at, Pairs.vector), align=1)


@operation(Pairs, types.Array, types.intp)
def load_pairs(builder: Builder, array: Value, at: Value) -> Value:
    """The 32 int16 from ``array[at]``."""
    return builder.load(pointer(builder, array, at, Pairs.vector), align=2)


@operation(types.void, types.Array, types.intp, Pairs)
def store_pairs(builder: Builder, array: Value, at: Value, pairs: Value) -> None:
    """Write 32 int16 from ``array[at]`` on."""
    builder.store(pairs, pointer(builder, array, at, Pairs.vector), align=2)


def _nibbles(shift: int) -> Any:
    @operation(Pairs, Pairs)
    def nibbles(builder: Builder, words: Value) -> Value:
        down, bits = constant(shift, Pairs.vector), constant(15, Pairs.vector)
        return builder.and_(builder.lshr(words, down), bits)

    return nibbles


nibbles_0, nibbles_1, nibbles_2, nibbles_3 = map(_nibbles, (0, 4, 8, 12))
"""Of each word the lowest four bits, the next four ..."""


@operation(Fours, types.Array, types.intp)
def load_fours(builder: Builder, array: Value, at: Value) -> Value:
    """The 64 bytes from ``array[at]``."""
    return builder.load(pointer(builder, array, at, Fours.vector), align=1)


def _lower(builder: Builder, fours: Value) -> Value:
    return builder.and_(fours, constant(15, Fours.vector))


def _upper(builder: Builder, fours: Value) -> Value:
    return builder.lshr(fours, constant(4, Fours.vector))


lower_nibbles = operation(Fours, Fours)(_lower)
"""Of each byte the lower four bits."""

upper_nibbles = operation(Fours, Fours)(_upper)
"""Of each byte the upper four bits."""


def _sixes(place: int) -> Any:
    @operation(Fours, Fours, Fours)
    def sixes(builder: Builder, fours: Value, uppers: Value) -> Value:
        low = _lower(builder, fours) if place % 2 == 0 else _upper(builder, fours)
        up, by = 2 - place, constant(abs(4 - 2 * place), Fours.vector)
        moved = builder.shl(uppers, by) if up > 0 else builder.lshr(uppers, by)
        return builder.or_(low, builder.and_(moved, constant(48, Fours.vector)))

    return sixes


sixes_0, sixes_1, sixes_2, sixes_3 = map(_sixes, range(4))
"""Numbers of six bits: lower or upper nibbles, and above them two bits of each byte, the lowest,
the next two ..."""


@operation(Pairs, Fours)
def even_bytes(builder: Builder, fours: Value) -> Value:
    """The first byte of each two, and the third of each four."""
    return builder.and_(builder.bitcast(fours, Pairs.vector), constant(255, Pairs.vector))


@operation(Pairs, Fours)
def odd_bytes(builder: Builder, fours: Value) -> Value:
    """The others."""
    return builder.lshr(builder.bitcast(fours, Pairs.vector), constant(8, Pairs.vector))


@operation(Ints, Ints, Fours, types.Array, types.intp)
def multiply_fours(
    builder: Builder, total: Value, weights: Value, numbers: Value, at: Value
) -> Value:
    """``total`` and, in every lane i, four of the bytes ``weights[4i]``, which are not negative,
    times those from ``numbers[at]``."""
    four = builder.load(pointer(builder, numbers, at, _INT), align=1)
    if "ASIMDDP" in compiled_for:
        return dots(builder, total, weights, four)
    spread = builder.bitcast(repeated(builder, four), Fours.vector)
    kind = ir.FunctionType(Ints.vector, (Ints.vector, Fours.vector, Fours.vector))
    called = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
        builder.module, kind, "llvm.x86.avx512.vpdpbusd.512"
    )
    return builder.call(called, (total, weights, spread))


def dots(builder: Builder, total: Value, weights: Value, four: Value) -> Value:
    """`multiply_fours` for ARM, whose ``sdot`` adds to four sums: four bytes, as an int32."""
    nothing = ir.Constant(_QUARTER, ir.Undefined)
    first = builder.insert_element(nothing, four, ir.Constant(_INT, 0))
    spread = builder.shuffle_vector(first, nothing, ir.Constant(_QUARTER, [0] * 4))
    spread = builder.bitcast(spread, Bytes.vector)
    kind = ir.FunctionType(_QUARTER, [_QUARTER, Bytes.vector, Bytes.vector])
    called = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
        builder.module, kind, "llvm.aarch64.neon.sdot.v4i32.v16i8"
    )
    sums = []
    for lane in range(0, LANES, 4):
        some = part(builder, total, lane, 4), part(builder, weights, 4 * lane, 16)
        sums.append(builder.call(called, [*some, spread]))
    return joined(builder, joined(builder, *sums[:2]), joined(builder, *sums[2:]))


def part(builder: Builder, vector: Value, first: int, count: int) -> Value:
    """``count`` of a vector's numbers, from the one at ``first`` on."""
    places = ir.Constant(ir.VectorType(_INT, count), list(range(first, first + count)))
    return builder.shuffle_vector(vector, vector, places)


def joined(builder: Builder, left: Value, right: Value) -> Value:
    """One vector of two."""
    count = 2 * left.type.count
    places = ir.Constant(ir.VectorType(_INT, count), list(range(count)))
    return builder.shuffle_vector(left, right, places)


@operation(Ints, Ints, Pairs, types.Array, types.intp)
def multiply_pairs(
    builder: Builder, total: Value, weights: Value, numbers: Value, at: Value
) -> Value:
    """``total + weights[2i] * numbers[at] + weights[2i + 1] * numbers[at + 1]`` in every lane i."""
    if "ASIMD" in compiled_for:
        return _multiply_apart(builder, total, weights, numbers, at)
    pair = builder.load(pointer(builder, numbers, at, _INT), align=2)
    spread = builder.bitcast(repeated(builder, pair), Pairs.vector)
    wide = ir.VectorType(_INT, 2 * LANES)
    products = builder.mul(builder.sext(weights, wide), builder.sext(spread, wide))
    even, odd = (_every_other(builder, products, first) for first in (0, 1))
    return builder.add(total, builder.add(even, odd))


def _multiply_apart(
    builder: Builder, total: Value, weights: Value, numbers: Value, at: Value
) -> Value:
    """`multiply_pairs` for ARM, whose instruction ``smlal`` adds products, but not neighbours."""
    for place in (0, 1):
        where = builder.add(at, ir.Constant(at.type, place))
        number = builder.load(pointer(builder, numbers, where, _SHORT), align=2)
        factors = _every_other(builder, weights, place), repeated(builder, number)
        product = builder.mul(*(builder.sext(factor, Ints.vector) for factor in factors))
        total = builder.add(total, product)
    return total


def _every_other(builder: Builder, vector: Value, first: int) -> Value:
    """The sixteen of 32 numbers from ``first`` on."""
    places = ir.Constant(Ints.vector, list(range(first, 2 * LANES, 2)))
    return builder.shuffle_vector(vector, vector, places)


@operation(Floats, Floats, Ints, types.Array, types.intp, types.float32)
def add_scaled(
    builder: Builder, total: Value, ints: Value, scales: Value, at: Value, factor: Value
) -> Value:
    """``total + ints * (scales[at:] * factor)``, the scales being bfloat16 (as uint16)."""
    scale = builder.fmul(_scales(builder, scales, at), repeated(builder, factor))
    return fused(builder, builder.sitofp(ints, Floats.vector), scale, total)


def _scales(builder: Builder, scales: Value, at: Value) -> Value:
    bits = builder.shl(_load_shorts(builder, scales, at), constant(16))
    return builder.bitcast(bits, Floats.vector)


load_scales = operation(Floats, types.Array, types.intp)(_scales)
"""The sixteen bfloat16 (as uint16) from ``scales[at]``."""


@operation(Floats, types.Array, types.intp)
def low_bytes(builder: Builder, array: Value, at: Value) -> Value:
    """The lower bytes of the sixteen uint16 from ``array[at]``."""
    low = builder.and_(_load_shorts(builder, array, at), constant(255))
    return builder.sitofp(low, Floats.vector)


@operation(Floats, types.Array, types.intp)
def high_bytes(builder: Builder, array: Value, at: Value) -> Value:
    """The upper bytes of the sixteen uint16 from ``array[at]``."""
    high = builder.lshr(_load_shorts(builder, array, at), constant(8))
    return builder.sitofp(high, Floats.vector)


def _load_shorts(builder: Builder, array: Value, at: Value) -> Value:
    where = pointer(builder, array, at, ir.VectorType(_SHORT, LANES))
    return builder.zext(builder.load(where, align=2), Ints.vector)


@operation(types.void, types.Array, types.intp)
def prefetch(builder: Builder, array: Value, at: Value) -> None:
    """Have ``array[at]`` brought into the nearest cache; it need not exist."""
    where = pointer(builder, array, at, _BYTE)
    kind = ir.FunctionType(ir.VoidType(), [where.type, _INT, _INT, _INT])
    function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
        builder.module, kind, "llvm.prefetch.p0"
    )
    reading, keep, data = (ir.Constant(_INT, n) for n in (0, 3, 1))
    builder.call(function, [where, reading, keep, data])
