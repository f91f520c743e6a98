"""Whole numbers, sixteen lanes at a time: what the matrix products are made of (see `lanes`).

`Ints` are sixteen int32, `Pairs` sixteen pairs of int16.

`multiply_pairs` is the reason for all this. A product of two int16 with the neighbouring
product added, in int32, is one instruction wherever there are vectors (x86: ``vpmaddwd``), and
does twice the work of a float32 multiply-add of the same width.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils

from workers.inference.engines.native.compiler import operation
from workers.inference.engines.native.lanes import (
    Floats,
    Ints,
    Pairs,
    address_of,
    fused,
    repeated,
)
from workers.inference.engines.native.layout import LANES

_BYTE, _SHORT, _INT = ir.IntType(8), ir.IntType(16), ir.IntType(32)


@operation
def no_ints(typing: Any) -> Any:
    """Sixteen int32 zeros."""
    return Ints(), lambda *_: ir.Constant(Ints.vector, None)


@operation
def load_weights(typing: Any, array: Any, at: Any) -> Any:
    """The 32 int8 from ``array[at]``, as sixteen pairs of int16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bytes_ = ir.VectorType(_BYTE, 2 * LANES)
        where = address_of(context, builder, signature.args[0], arguments[0], arguments[1], bytes_)
        return builder.sext(builder.load(where, align=1), Pairs.vector)

    return Pairs(array, types.intp), generate


@operation
def spread_pair(typing: Any, array: Any, at: Any) -> Any:
    """Sixteen times the pair of int16 at ``array[at]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        where = address_of(context, builder, signature.args[0], arguments[0], arguments[1], _INT)
        return builder.bitcast(repeated(builder, builder.load(where, align=2)), Pairs.vector)

    return Pairs(array, types.intp), generate


@operation
def multiply_pairs(typing: Any, total: Any, left: Any, right: Any) -> Any:
    """``total + left[2i] * right[2i] + left[2i + 1] * right[2i + 1]`` in every lane i."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, left, right = arguments
        wide = ir.VectorType(_INT, 2 * LANES)
        products = builder.mul(builder.sext(left, wide), builder.sext(right, wide))
        even, odd = (
            builder.shuffle_vector(
                products, products, ir.Constant(Ints.vector, list(range(first, 2 * LANES, 2)))
            )
            for first in (0, 1)
        )
        return builder.add(total, builder.add(even, odd))

    return Ints(Ints, Pairs, Pairs), generate


@operation
def add_scaled(typing: Any, total: Any, ints: Any, scales: Any, at: Any, factor: Any) -> Any:
    """``total + ints * (scales[at:] * factor)``, the scales being bfloat16 (as uint16)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, ints, scales, at, factor = arguments
        halves = ir.VectorType(_SHORT, LANES)
        where = address_of(context, builder, signature.args[2], scales, at, halves)
        bits = builder.zext(builder.load(where, align=2), Ints.vector)
        bits = builder.shl(bits, ir.Constant(Ints.vector, [16] * LANES))
        scale = builder.fmul(builder.bitcast(bits, Floats.vector), repeated(builder, factor))
        return fused(builder, builder.sitofp(ints, Floats.vector), scale, total)

    return Floats(Floats, Ints, scales, types.intp, types.float32), generate


@operation
def prefetch(typing: Any, array: Any, at: Any) -> Any:
    """Have ``array[at]`` brought into the nearest cache; it need not exist."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        where = address_of(context, builder, signature.args[0], arguments[0], arguments[1], _BYTE)
        kind = ir.FunctionType(ir.VoidType(), [where.type, _INT, _INT, _INT])
        function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            builder.module, kind, "llvm.prefetch.p0"
        )
        reading, keep, data = (ir.Constant(_INT, n) for n in (0, 3, 1))
        builder.call(function, [where, reading, keep, data])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@operation
def load_words(typing: Any, array: Any, at: Any) -> Any:
    """The 64 bytes from ``array[at]``, as sixteen pairs of words with four nibbles each."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        where = address_of(
            context, builder, signature.args[0], arguments[0], arguments[1], Pairs.vector
        )
        return builder.load(where, align=1)

    return Pairs(array, types.intp), generate


def _nibbles(shift: int, mask: int) -> Any:
    """An operation: of each word the bits in ``mask``, when it has been moved down."""

    def define(typing: Any, words: Any) -> Any:
        down, bits = (ir.Constant(Pairs.vector, [n] * (2 * LANES)) for n in (shift, mask))

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.and_(builder.lshr(arguments[0], down), bits)

        return Pairs(Pairs), generate

    return operation(define)


nibbles_0, nibbles_1, nibbles_2, nibbles_3 = (_nibbles(shift, 15) for shift in (0, 4, 8, 12))
nibbles_1_times_16, nibbles_3_times_16 = (_nibbles(shift, 240) for shift in (0, 8))


@operation
def add_sixteenths(typing: Any, total: Any, ints: Any) -> Any:
    """``total + ints / 16``, for multiples of 16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        four = ir.Constant(Ints.vector, [4] * LANES)
        return builder.add(arguments[0], builder.ashr(arguments[1], four))

    return Ints(Ints, Ints), generate


@operation
def low_bytes(typing: Any, array: Any, at: Any) -> Any:
    """The lower bytes of the sixteen uint16 from ``array[at]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words = _load_halves(context, builder, signature, arguments)
        low = builder.and_(words, ir.Constant(Ints.vector, [255] * LANES))
        return builder.sitofp(low, Floats.vector)

    return Floats(array, types.intp), generate


@operation
def high_bytes(typing: Any, array: Any, at: Any) -> Any:
    """The upper bytes of the sixteen uint16 from ``array[at]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words = _load_halves(context, builder, signature, arguments)
        high = builder.lshr(words, ir.Constant(Ints.vector, [8] * LANES))
        return builder.sitofp(high, Floats.vector)

    return Floats(array, types.intp), generate


def _load_halves(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    halves = ir.VectorType(_SHORT, LANES)
    where = address_of(context, builder, signature.args[0], arguments[0], arguments[1], halves)
    return builder.zext(builder.load(where, align=2), Ints.vector)


@operation
def floats_of(typing: Any, ints: Any) -> Any:
    """Sixteen int32 as float32."""
    return Floats(Ints), lambda _, builder, __, given: builder.sitofp(given[0], Floats.vector)
