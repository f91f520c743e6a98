"""Compiles the kernels: numba, with a cache of machine code in a directory of ours.

A module with kernels is imported after `prepare`, since numba asks where to cache when it sees
a function, not when it compiles it. The directory is named after the sources: numba compiles a
function again when its own file has changed, but not when a function that it calls has.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from workers.inference.engines.native.machine_code import NAME, NEEDED

log = logging.getLogger(__name__)

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

_DIGITS = 12

_ROOM_BYTES = 2 * 1024**2
"""More than the machine code of all that packs weights."""

_kept = True
"""Whether `prepare` could write to the directory."""

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


def kernel_directory(home: Path) -> Path:
    """Where machine code is kept: with this installation if it may be written, so that it is
    compiled once for all homes; else in ``home``."""
    shared = Path(sys.prefix, "share", "shammah")
    return (shared if os.access(shared, os.W_OK) else home) / "kernels"


def own_directory(directory: Path) -> Path:
    """Where below ``directory`` the machine code of these sources is."""
    return directory / _digest_of_sources()


def prepare(directory: Path) -> None:
    """Cache what is compiled from now on below ``directory``, if possible; imports numba."""
    global _kept
    from numba.core import config

    own = own_directory(directory)
    config.CACHE_DIR = str(own)  # type: ignore[attr-defined]
    try:
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=own) as file:
            file.write(bytes(_ROOM_BYTES))
        _kept = True
    except OSError as error:  # numba would raise it from the first call of a kernel
        log.warning("cannot cache the compiled kernels: %s", error)
        _kept = False


def entry(function: Kernel) -> Kernel:
    """Compile on the first call ever, together with all that it calls, and keep the code.

    For what is rarely called; `machine_code` says how a step is kept.
    """
    import numba

    return cast(Kernel, numba.njit(nogil=True, cache=_kept, error_model="numpy")(function))


def emit(function: Callable[..., Any], operands: Any) -> bytes:
    """An object file with ``function(member, operands)``, as `machine_code` describes it.

    Raises:
        RuntimeError: the code would call something that is not there without numba.
    """
    import llvmlite.binding as llvm  # type: ignore[import-untyped]
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
    module = library._final_module
    module.get_function(compiled_call.fndesc.llvm_func_name).name = NAME
    module.link_in(llvm.parse_assembly(_NOTHING_IS_FREED))
    missing = {one.name for one in module.functions if one.is_declaration} - NEEDED
    if missing := {name for name in missing if not name.startswith("llvm.")}:
        raise RuntimeError(f"the kernels call {', '.join(sorted(missing))}")
    machine_code: bytes = library._codegen._tm.emit_object(module)
    return machine_code


def compiled(function: Kernel) -> Kernel:
    """For what only kernels call. Arithmetic is done as written, in the order written."""
    return _inner(function, fastmath=False)


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


def _inner(function: Kernel, fastmath: bool) -> Kernel:
    import numba

    options: dict[str, Any] = {
        "fastmath": fastmath,
        "error_model": "numpy",
        # No ways in from Python and C: to compile these takes as long as the rest.
        "no_cpython_wrapper": True,
        "no_cfunc_wrapper": True,
    }
    return cast(Kernel, numba.njit(**options)(function))


def _digest_of_sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:_DIGITS]
