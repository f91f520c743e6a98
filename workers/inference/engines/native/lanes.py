"""Sixteen numbers at a time: the few vector operations that the kernels are written with.

`Floats` are sixteen float32; `pairs` has those for whole numbers. They are numba types of one
LLVM vector each, and every operation is a line or two of LLVM instructions, which LLVM cuts to
the width of the machine's registers. So a kernel says exactly what is computed and in which
order, and no loop depends on what a vectoriser makes of it.

`Floats` can be added, subtracted, multiplied and divided, also by a float32. All other
operations also take tuples, for several rows at once (see `compiler.operation`).

Arrays are addressed by element, without checks. Numbers of 16 bits are kept as uint16: bfloat16,
the upper half of a float32, for scales, and float16 (IEEE 754) for keys and values.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

from workers.inference.engines.native.compiler import operation
from workers.inference.engines.native.layout import LANES

Vector = Any
"""A value of a type that is defined here, in annotations; or a tuple, one for each row."""

Rows = Any
"""In annotations: the number of one row, or a tuple of those that are computed together."""

Builder = Any
Value = Any
"""LLVM's, in the annotations of operations."""

_BYTE, _SHORT, _INT = ir.IntType(8), ir.IntType(16), ir.IntType(32)
_FLOAT = ir.FloatType()
_LARGEST_HALF = 65504.0


class _Vector(types.Type):
    """A numba type that is one LLVM vector."""

    def __init__(self, name: str, element: ir.Type, count: int) -> None:
        self.vector = ir.VectorType(element, count)
        super().__init__(name)


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _Vector) -> None:
        super().__init__(manager, kind, kind.vector)  # type: ignore[no-untyped-call]


Floats = _Vector("Floats", _FLOAT, LANES)
Ints = _Vector("Ints", _INT, LANES)
Pairs = _Vector("Pairs", _SHORT, 2 * LANES)
Fours = _Vector("Fours", _BYTE, 4 * LANES)
Bytes = _Vector("Bytes", _BYTE, 16)


def pointer(builder: Builder, array: Value, at: Value, wanted: ir.Type) -> Value:
    """The address of element ``at`` of an array, as one of something ``wanted``."""
    return builder.bitcast(builder.gep(array, [at]), wanted.as_pointer())


def repeated(builder: Builder, value: Value) -> Value:
    """A vector of sixteen times ``value``."""
    vector = ir.VectorType(value.type, LANES)
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(Ints.vector, [0] * LANES))


def constant(number: int, vector: ir.VectorType = Ints.vector) -> Value:
    """A vector of whole numbers that are all the same."""
    return ir.Constant(vector, [number] * vector.count)


def fused(builder: Builder, left: Value, right: Value, added: Value) -> Value:
    """``left * right + added``, rounded once."""
    return _call(builder, "llvm.fma", left, right, added)


def _call(builder: Builder, function: str, *arguments: Value, result: Any = None) -> Value:
    """Call LLVM's own function of this name for `Floats`; its result is `Floats`, too."""
    kind = ir.FunctionType(result or Floats.vector, [Floats.vector] * len(arguments))
    name = f"{function}.v{LANES}f32"
    called = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
        builder.module, kind, name
    )
    return builder.call(called, arguments)


def _define(symbol: Callable[..., Any], instruction: str) -> None:
    """Let ``symbol`` (+, -, *, /) be used with `Floats`; a product and a sum may become one."""
    forms = ((Floats, Floats), (Floats, types.float32), (types.float32, Floats))
    cases = [signature(Floats, *form) for form in forms]  # type: ignore[no-untyped-call]
    template = type(symbol.__name__, (ConcreteTemplate,), {"key": symbol, "cases": cases})
    infer_global(symbol)(template)  # type: ignore[no-untyped-call]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = [a if a.type == Floats.vector else repeated(builder, a) for a in arguments]
        return getattr(builder, instruction)(*vectors, flags=("contract",))

    for form in forms:
        lower_builtin(symbol, *form)(generate)  # type: ignore[no-untyped-call]


_define(operator.add, "fadd")
_define(operator.sub, "fsub")
_define(operator.mul, "fmul")
_define(operator.truediv, "fdiv")


# --- places of rows -----------------------------------------------------------------------


@operation(types.intp, types.intp, types.intp, types.intp)
def following(builder: Builder, count: Value, first: Value, last: Value) -> Value:
    """``first + count``, but not past ``last``."""
    number = builder.add(first, count)
    return builder.select(builder.icmp_signed("<", number, last), number, last)


@operation(types.intp, types.intp, types.intp, types.intp)
def place(builder: Builder, row: Value, width: Value, column: Value) -> Value:
    """Where ``[row, column]`` lies in an array with rows of ``width``."""
    return builder.add(builder.mul(row, width), column)


# --- from and to memory -------------------------------------------------------------------


@operation(Floats, types.Array, types.intp)
def load_floats(builder: Builder, array: Value, at: Value) -> Value:
    """The sixteen float32 from ``array[at]``."""
    return builder.load(pointer(builder, array, at, Floats.vector), align=4)


@operation(Floats, types.int64, types.intp)
def load_floats_at(builder: Builder, address: Value, at: Value) -> Value:
    """The sixteen float32 from number ``at`` of those that lie at an address."""
    floats = builder.inttoptr(address, _FLOAT.as_pointer())
    return builder.load(pointer(builder, floats, at, Floats.vector), align=4)


@operation(Floats, types.Array, types.intp)
def load_halves(builder: Builder, array: Value, at: Value) -> Value:
    """The sixteen float16 from ``array[at]``."""
    where = pointer(builder, array, at, ir.VectorType(ir.HalfType(), LANES))
    return builder.fpext(builder.load(where, align=2), Floats.vector)


@operation(types.float32, types.Array, types.intp)
def load_float(builder: Builder, array: Value, at: Value) -> Value:
    """The float32 at ``array[at]``."""
    return builder.load(pointer(builder, array, at, _FLOAT))


@operation(types.void, types.Array, types.intp, Floats)
def store_floats(builder: Builder, array: Value, at: Value, floats: Value) -> None:
    """Put the sixteen numbers at ``array[at]``."""
    builder.store(floats, pointer(builder, array, at, Floats.vector), align=4)


@operation(types.void, types.Array, types.intp, types.float32)
def store_float(builder: Builder, array: Value, at: Value, number: Value) -> None:
    """Put the number at ``array[at]``."""
    builder.store(number, pointer(builder, array, at, _FLOAT))


@operation(types.void, types.Array, types.intp, Floats, types.float32)
def store_rounded(builder: Builder, array: Value, at: Value, floats: Value, factor: Value) -> None:
    """Put the sixteen numbers, times ``factor`` and rounded to int16, at ``array[at]``."""
    shorts = _rounded(builder, floats, factor, _SHORT)
    builder.store(shorts, pointer(builder, array, at, shorts.type), align=2)


@operation(types.void, types.Array, types.intp, Floats, Floats, types.float32)
def store_interleaved(
    builder: Builder, array: Value, at: Value, left: Value, right: Value, factor: Value
) -> None:
    """Put 32 numbers, times ``factor`` and rounded to int8, at ``array[at]``: one of ``left``, one
    of ``right``."""
    both = [_rounded(builder, floats, factor, _BYTE) for floats in (left, right)]
    kind = ir.VectorType(_INT, 2 * LANES)
    places = [place for lane in range(LANES) for place in (lane, LANES + lane)]
    mixed = builder.shuffle_vector(*both, ir.Constant(kind, places))
    builder.store(mixed, pointer(builder, array, at, mixed.type), align=1)


def _rounded(builder: Builder, floats: Value, factor: Value, kind: Any) -> Value:
    """``floats * factor`` as whole numbers of a kind."""
    numbers = builder.fmul(floats, repeated(builder, factor))
    whole = builder.fptosi(_call(builder, "llvm.rint", numbers), Ints.vector)
    return builder.trunc(whole, ir.VectorType(kind, LANES))


# --- sixteen numbers ----------------------------------------------------------------------


@operation(Floats)
def no_floats(builder: Builder) -> Value:
    """Sixteen float32 zeros."""
    return ir.Constant(Floats.vector, None)


@operation(Floats, types.intp)
def no_floats_of(builder: Builder, row: Value) -> Value:
    """Sixteen float32 zeros for each row."""
    return ir.Constant(Floats.vector, None)


@operation(Floats, types.float32)
def spread(builder: Builder, number: Value) -> Value:
    """Sixteen times the number."""
    return repeated(builder, number)


@operation(Floats, Floats, Floats)
def add(builder: Builder, left: Value, right: Value) -> Value:
    """``left + right``."""
    return builder.fadd(left, right)


@operation(Floats, Floats, types.float32)
def times(builder: Builder, floats: Value, factor: Value) -> Value:
    """``floats * factor``."""
    return builder.fmul(floats, repeated(builder, factor))


@operation(Floats, Floats, types.Array, types.intp, Floats)
def add_product(builder: Builder, total: Value, factors: Value, at: Value, floats: Value) -> Value:
    """``total + factors[at] * floats``, rounded once."""
    factor = builder.load(pointer(builder, factors, at, _FLOAT))
    return fused(builder, repeated(builder, factor), floats, total)


@operation(Floats, Floats, Floats, Floats)
def add_multiplied(builder: Builder, total: Value, left: Value, right: Value) -> Value:
    """``total + left * right``, rounded once."""
    return fused(builder, left, right, total)


@operation(Floats, Floats, Floats)
def larger(builder: Builder, left: Value, right: Value) -> Value:
    """The larger number in each lane."""
    return builder.select(builder.fcmp_ordered(">", left, right), left, right)


@operation(Floats, Floats, Floats)
def smaller(builder: Builder, left: Value, right: Value) -> Value:
    """The smaller number in each lane."""
    return builder.select(builder.fcmp_ordered("<", left, right), left, right)


@operation(Floats, Floats, Floats, Floats, Floats)
def where_larger(builder: Builder, left: Value, right: Value, yes: Value, no: Value) -> Value:
    """``yes`` in the lanes where ``left`` is larger than ``right``, else ``no``."""
    return builder.select(builder.fcmp_ordered(">", left, right), yes, no)


@operation(Floats, Floats)
def rounded(builder: Builder, floats: Value) -> Value:
    """The nearest whole numbers."""
    return _call(builder, "llvm.rint", floats)


@operation(Floats, Floats)
def power_of_two(builder: Builder, floats: Value) -> Value:
    """Two to the power of whole numbers from -126 to 127."""
    exponents = builder.add(builder.fptosi(floats, Ints.vector), constant(127))
    return builder.bitcast(builder.shl(exponents, constant(23)), Floats.vector)


@operation(Floats, Floats)
def magnitudes(builder: Builder, floats: Value) -> Value:
    """The numbers without their signs."""
    return _call(builder, "llvm.fabs", floats)


@operation(types.float32, Floats)
def first_of(builder: Builder, floats: Value) -> Value:
    """The number in the first lane."""
    return builder.extract_element(floats, ir.Constant(_INT, 0))


@operation(types.float32, Floats)
def sum_of(builder: Builder, floats: Value) -> Value:
    """The sum of the sixteen numbers, from the first to the last."""
    total: Any = ir.Constant(_FLOAT, 0.0)
    for lane in range(LANES):
        total = builder.fadd(total, builder.extract_element(floats, ir.Constant(_INT, lane)))
    return total


@operation(types.float32, Floats)
def largest_of(builder: Builder, floats: Value) -> Value:
    """The largest of the sixteen numbers."""
    return _call(builder, "llvm.vector.reduce.fmax", floats, result=_FLOAT)


# --- one number ---------------------------------------------------------------------------


@operation(types.float32, types.int32)
def float_of_bits(builder: Builder, bits: Value) -> Value:
    """The float32 that is written with the bits of an int32."""
    return builder.bitcast(bits, _FLOAT)


@operation(types.int32, types.float32)
def bits_of_float(builder: Builder, number: Value) -> Value:
    """The bits of a float32, as an int32."""
    return builder.bitcast(number, _INT)


@operation(types.uint16, types.float32)
def half_of_float(builder: Builder, number: Value) -> Value:
    """The bits of the float16 nearest to a float32; too large ones become the largest."""
    for order, limit in (("<", _LARGEST_HALF), (">", -_LARGEST_HALF)):
        bound = ir.Constant(_FLOAT, limit)
        number = builder.select(builder.fcmp_ordered(order, number, bound), number, bound)
    return builder.bitcast(builder.fptrunc(number, ir.HalfType()), _SHORT)
