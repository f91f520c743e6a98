"""Compiles the kernels with numba: for this processor, or for another one.

Needed only where machine code is made: a start that finds it imports none of this.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from workers.inference.engines.native.machine_code import NEEDED, SYMBOL
from workers.inference.engines.native.processor import features

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

Export = tuple[Callable[..., Any], Any]
"""A function of a member's number and of operands, and operands of the kind that it is for."""

compiled_for = features()
"""What the processor can do that is compiled for. Set before a kernel is imported."""

_WORD = 8
"""Bytes to which all operands are aligned."""

_NOTHING_IS_FREED = """
declare void @llvm.trap()
define void @NRT_MemInfo_call_dtor(ptr %0) {
  call void @llvm.trap()
  unreachable
}
"""
"""What numba calls where it gives the memory of an array back. The operands are not numba's, and
kernels make no arrays, so it never is."""


def emit(exports: Mapping[str, Export], machine: Any = None) -> bytes:
    """An object file with these functions by these names, as `machine_code` describes them.

    Args:
        machine: LLVM's target machine; none: numba's own, whose code is only for this process.

    Raises:
        RuntimeError: the code would call something that is not there without numba.
    """
    import llvmlite.binding as llvm  # type: ignore[import-untyped]

    libraries = [_library(SYMBOL + name, *export) for name, export in exports.items()]
    module = libraries[0]._final_module
    for other in libraries[1:]:
        module.link_in(other._final_module)
    module.link_in(llvm.parse_assembly(_NOTHING_IS_FREED))
    missing = {one.name for one in module.functions if one.is_declaration} - NEEDED
    if missing := {name for name in missing if not name.startswith("llvm.")}:
        raise RuntimeError(f"the kernels call {', '.join(sorted(missing))}")
    emitted: bytes = (machine or libraries[0]._codegen._tm).emit_object(module)
    return emitted


def _library(symbol: str, function: Callable[..., Any], operands: Any) -> Any:
    """numba's library with ``symbol(member, address of operands)``."""
    import numba
    from numba import types
    from numba.extending import intrinsic

    kind = numba.typeof(operands)  # type: ignore[no-untyped-call]

    def load(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            model = context.data_model_manager[kind]
            pointer = builder.bitcast(arguments[0], model.get_data_type().as_pointer())
            return model.load_from_data_pointer(builder, pointer, _WORD)

        return kind(types.voidptr), generate

    read = cast(Callable[..., Any], intrinsic(load))

    def call(member: int, address: int) -> None:
        function(member, read(address))

    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    signature = types.void(types.int64, types.voidptr)
    dispatcher = numba.njit(signature, error_model="numpy", **options)(call)
    compiled_call: Any = next(iter(dispatcher.overloads.values()))
    library = compiled_call.library
    library._final_module.get_function(compiled_call.fndesc.llvm_func_name).name = symbol
    return library


def compiled(function: Kernel) -> Kernel:
    """For what only kernels call. Arithmetic is done as written, in the order written."""
    return _inner(function, fastmath=False)


def inlined(function: Kernel) -> Kernel:
    """As `compiled`, for a part of a loop: calls that pass arrays count their references."""
    return _inner(function, fastmath=False, inline="always")


def compiled_freely(function: Kernel) -> Kernel:
    """For what only kernels call. Sums may be formed in another order, always the same one.

    Loops over numbers are vectorised by this. Infinities and NaNs must not occur.
    """
    return _inner(function, fastmath=True)


def operation(result: Any, *kinds: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make an operation for kernels of a function that emits its LLVM instructions.

    The function gets an LLVM builder and the values of the arguments; of an array it gets the
    address of the first number.

    An argument may also be a tuple, one value for each of several rows. The operation is then
    done for each row, with the arguments that are no tuples the same for all, and gives a tuple.
    So one source computes a row alone and several together, in the same order.

    Args:
        result: numba's type of it.
        kinds: of the arguments; `types.Array` for an array of any kind.
    """
    from numba import types
    from numba.extending import intrinsic

    def define(emit: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(emit)
        def typed(typing: Any, *given: Any) -> Any:
            rows = max((len(one) for one in given if isinstance(one, types.UniTuple)), default=0)

            def of_rows(kind: Any) -> Any:
                return types.UniTuple(kind, rows)  # type: ignore[no-untyped-call]

            def expected(kind: Any, one: Any) -> Any:
                if kind is types.Array:
                    return one
                return of_rows(kind) if isinstance(one, types.UniTuple) else kind

            def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                def of_row(row: int, kind: Any, value: Any) -> Any:
                    if isinstance(kind, types.Array):
                        return context.make_array(kind)(context, builder, value).data
                    if isinstance(kind, types.UniTuple):
                        return builder.extract_value(value, row)
                    return value

                done = [
                    emit(builder, *map(of_row, [row] * len(values), signature.args, values))
                    for row in range(rows or 1)
                ]
                if result is types.void:
                    return context.get_dummy_value()
                return context.make_tuple(builder, signature.return_type, done) if rows else done[0]

            returned = of_rows(result) if rows and result is not types.void else result
            return returned(*map(expected, kinds, given)), generate

        return cast(Callable[..., Any], intrinsic(typed))

    return define


def _inner(function: Kernel, fastmath: bool, inline: str = "never") -> Kernel:
    import numba

    options: dict[str, Any] = {
        "fastmath": fastmath,
        "inline": inline,
        "error_model": "numpy",
        # No ways in from Python and C: to compile these takes as long as the rest.
        "no_cpython_wrapper": True,
        "no_cfunc_wrapper": True,
    }
    return cast(Kernel, numba.njit(**options)(function))
