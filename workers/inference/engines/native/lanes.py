"""Sixteen numbers at a time: the few vector operations that the kernels are written with.

`Floats` are sixteen float32; `pairs` has those for whole numbers. They are numba types of one
LLVM vector each, and every operation is a line or two of LLVM instructions, which LLVM cuts to
the width of the machine's registers. So a kernel says exactly what is computed and in which
order, and no loop depends on what a vectoriser makes of it.

`Floats` can be added, subtracted, multiplied and divided, also by a float32.

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
"""A value of a type that is defined here, in annotations."""

_SHORT, _INT = ir.IntType(16), ir.IntType(32)
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


def address_of(context: Any, builder: Any, kind: Any, array: Any, at: Any, wanted: ir.Type) -> Any:
    """A pointer to element ``at`` of an array of this ``kind``, as a pointer to ``wanted``."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), wanted.as_pointer())


def repeated(builder: Any, value: Any) -> Any:
    """A vector of sixteen times ``value``."""
    vector = ir.VectorType(value.type, LANES)
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(Ints.vector, [0] * LANES))


def _call(builder: Any, function: str, arguments: list[Any], result: ir.Type) -> Any:
    """Call LLVM's own function of this name for `Floats`."""
    kind = ir.FunctionType(result, [Floats.vector] * len(arguments))
    name = f"{function}.v{LANES}f32"
    called = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
        builder.module, kind, name
    )
    return builder.call(called, arguments)


def fused(builder: Any, left: Any, right: Any, added: Any) -> Any:
    """``left * right + added``, rounded once."""
    return _call(builder, "llvm.fma", [left, right, added], Floats.vector)


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


@operation
def no_floats(typing: Any) -> Any:
    """Sixteen float32 zeros."""
    return Floats(), lambda *_: ir.Constant(Floats.vector, None)


@operation
def add_product(typing: Any, total: Any, factors: Any, at: Any, floats: Any) -> Any:
    """``total + factors[at] * floats``, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, factors, at, floats = arguments
        where = address_of(context, builder, signature.args[1], factors, at, _FLOAT)
        return fused(builder, repeated(builder, builder.load(where)), floats, total)

    return Floats(Floats, factors, types.intp, Floats), generate


@operation
def add_multiplied(typing: Any, total: Any, left: Any, right: Any) -> Any:
    """``total + left * right``, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, left, right = arguments
        return fused(builder, left, right, total)

    return Floats(Floats, Floats, Floats), generate


@operation
def load_halves(typing: Any, array: Any, at: Any) -> Any:
    """The sixteen float16 from ``array[at]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        halves = ir.VectorType(ir.HalfType(), LANES)
        where = address_of(context, builder, signature.args[0], arguments[0], arguments[1], halves)
        return builder.fpext(builder.load(where, align=2), Floats.vector)

    return Floats(array, types.intp), generate


@operation
def load_floats(typing: Any, array: Any, at: Any) -> Any:
    """The sixteen float32 from ``array[at]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        where = address_of(
            context, builder, signature.args[0], arguments[0], arguments[1], Floats.vector
        )
        return builder.load(where, align=4)

    return Floats(array, types.intp), generate


@operation
def load_floats_at(typing: Any, address: Any, at: Any) -> Any:
    """The sixteen float32 from number ``at`` of those that lie at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, at = arguments
        floats = builder.inttoptr(address, _FLOAT.as_pointer())
        where = builder.bitcast(builder.gep(floats, [at]), Floats.vector.as_pointer())
        return builder.load(where, align=4)

    return Floats(types.int64, types.intp), generate


@operation
def larger(typing: Any, left: Any, right: Any) -> Any:
    """The larger number in each lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, right = arguments
        return builder.select(builder.fcmp_ordered(">", left, right), left, right)

    return Floats(Floats, Floats), generate


@operation
def smaller(typing: Any, left: Any, right: Any) -> Any:
    """The smaller number in each lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, right = arguments
        return builder.select(builder.fcmp_ordered("<", left, right), left, right)

    return Floats(Floats, Floats), generate


@operation
def where_larger(typing: Any, left: Any, right: Any, yes: Any, no: Any) -> Any:
    """``yes`` in the lanes where ``left`` is larger than ``right``, else ``no``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, right, yes, no = arguments
        return builder.select(builder.fcmp_ordered(">", left, right), yes, no)

    return Floats(Floats, Floats, Floats, Floats), generate


@operation
def spread(typing: Any, number: Any) -> Any:
    """Sixteen times the number."""
    return Floats(types.float32), lambda _, builder, __, given: repeated(builder, given[0])


@operation
def rounded(typing: Any, floats: Any) -> Any:
    """The nearest whole numbers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "llvm.rint", arguments, Floats.vector)

    return Floats(Floats), generate


@operation
def power_of_two(typing: Any, floats: Any) -> Any:
    """Two to the power of whole numbers from -126 to 127."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def ints(number: int) -> Any:
            return ir.Constant(Ints.vector, [number] * LANES)

        exponents = builder.add(builder.fptosi(arguments[0], Ints.vector), ints(127))
        return builder.bitcast(builder.shl(exponents, ints(23)), Floats.vector)

    return Floats(Floats), generate


@operation
def magnitudes(typing: Any, floats: Any) -> Any:
    """The numbers without their signs."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "llvm.fabs", arguments, Floats.vector)

    return Floats(Floats), generate


@operation
def first_of(typing: Any, floats: Any) -> Any:
    """The number in the first lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.extract_element(arguments[0], ir.Constant(_INT, 0))

    return types.float32(Floats), generate


@operation
def sum_of(typing: Any, floats: Any) -> Any:
    """The sum of the sixteen numbers, from the first to the last."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total: Any = ir.Constant(_FLOAT, 0.0)
        for lane in range(LANES):
            total = builder.fadd(
                total, builder.extract_element(arguments[0], ir.Constant(_INT, lane))
            )
        return total

    return types.float32(Floats), generate


@operation
def largest_of(typing: Any, floats: Any) -> Any:
    """The largest of the sixteen numbers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "llvm.vector.reduce.fmax", arguments, _FLOAT)

    return types.float32(Floats), generate


@operation
def store_floats(typing: Any, array: Any, at: Any, floats: Any) -> Any:
    """Put the sixteen numbers at ``array[at]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, at, floats = arguments
        where = address_of(context, builder, signature.args[0], array, at, Floats.vector)
        builder.store(floats, where, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, Floats), generate


@operation
def float_of_bits(typing: Any, bits: Any) -> Any:
    """The float32 that is written with the bits of an int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _FLOAT)

    return types.float32(types.int32), generate


@operation
def half_of_float(typing: Any, number: Any) -> Any:
    """The bits of the float16 nearest to a float32; too large ones become the largest."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = arguments[0]
        for order, limit in (("<", _LARGEST_HALF), (">", -_LARGEST_HALF)):
            bound = ir.Constant(_FLOAT, limit)
            inside = builder.fcmp_ordered(order, number, bound)
            number = builder.select(inside, number, bound)
        return builder.bitcast(builder.fptrunc(number, ir.HalfType()), _SHORT)

    return types.uint16(types.float32), generate


@operation
def bits_of_float(typing: Any, number: Any) -> Any:
    """The bits of a float32, as an int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _INT)

    return types.int32(types.float32), generate


@operation
def store_rounded(typing: Any, array: Any, at: Any, floats: Any, factor: Any) -> Any:
    """Put the sixteen numbers, times ``factor`` and rounded to int16, at ``array[at]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, at, floats, factor = arguments
        numbers = builder.fmul(floats, repeated(builder, factor))
        whole = builder.fptosi(_call(builder, "llvm.rint", [numbers], Floats.vector), Ints.vector)
        shorts = ir.VectorType(_SHORT, LANES)
        where = address_of(context, builder, signature.args[0], array, at, shorts)
        builder.store(builder.trunc(whole, shorts), where, align=2)
        return context.get_dummy_value()

    return types.void(array, types.intp, Floats, types.float32), generate
