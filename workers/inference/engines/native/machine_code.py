"""The machine code of the kernels: made by numba once, and called without numba.

To import numba and define the kernels takes as long as all else of a start together, so a file
holds the compiled functions, which need only the C library:

    int32 shammah_step(void **nothing, void **error, int64 member, const void *operands)

which is numba's own calling convention; the result is 0, or an exception was raised. ``operands``
is the memory of a tuple as numba lays it out, every field of it being a multiple of 8 bytes long:

    a tuple     its fields, one after the other
    an array    8 words: two of numba's own, 0; numbers in all; bytes of one; the address of the
                first; the shape; the strides in bytes
    a number    one word

`kernels` says where the file comes from: a shared library that is carried with the program, or
an object file that was compiled here and kept. The latter is kept behind the SHA-256 of the rest,
and a description of the operands that each function was made for: other arrays than those would
be misread, not refused.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shammah.storage.files import replace_file

log = logging.getLogger(__name__)

SYMBOL = "shammah_"
"""What the names of functions begin with in an object file or library."""

NEEDED = frozenset({"memcpy", "memmove", "memset", "sched_yield", "sqrt"})
"""What the code may call: all of it is in the C library."""

_DIGEST = hashlib.sha256().digest_size
_LENGTH = struct.Struct("<q")


class Compiled(NamedTuple):
    """What is kept."""

    kinds: dict[str, str]  # of each function's operands, see `kinds_of`
    code: bytes  # an object file


class Function:
    """One function, ready to be called with a member's number and the address of the operands.

    It lets go of the interpreter meanwhile.
    """

    def __init__(self, address: int, kinds: str, owner: Any) -> None:
        """``owner``: what the code is freed with."""
        pointer = ctypes.c_void_p
        prototype = ctypes.CFUNCTYPE(ctypes.c_int32, pointer, pointer, ctypes.c_int64, pointer)
        self._function, self._kinds, self._owner = prototype(address), kinds, owner
        self._unused = (ctypes.c_void_p * 2)()

    def __call__(self, member: int, operands: int) -> None:
        unused = ctypes.addressof(self._unused)
        if self._function(unused, unused + 8, member, operands):
            raise ArithmeticError("a kernel raised an exception")

    def check(self, operands: Any) -> None:
        """Raise an error if it was not made for such operands."""
        if (found := kinds_of(operands)) != self._kinds:
            raise TypeError(f"the kernels are for {self._kinds}, not for {found}")

    def run(self, operands: Any) -> None:
        """Do all of it in this thread."""
        self.check(operands)
        words = np.array(words_of(operands), np.int64)
        self(0, address_of(words))


class MachineCode:
    """The functions of one object file, by their names."""

    def __init__(self, kinds: Mapping[str, str], owner: Any, find: Callable[[str], int]) -> None:
        """``find``: the address of a symbol, which is code as long as there is the ``owner``."""
        self._functions = {
            name: Function(find(SYMBOL + name), kind, owner) for name, kind in kinds.items()
        }

    def __getitem__(self, name: str) -> Function:
        return self._functions[name]

    @classmethod
    def of_library(cls, path: Path, kinds: Mapping[str, str]) -> MachineCode:
        """That of a shared library.

        Raises:
            OSError: the system cannot load it.
        """
        library = ctypes.CDLL(str(path))

        def find(symbol: str) -> int:
            return ctypes.cast(library[symbol], ctypes.c_void_p).value or 0

        return cls(kinds, library, find)

    @classmethod
    def of_object(cls, compiled: Compiled) -> MachineCode:
        """That of an object file, which LLVM links in memory."""
        import llvmlite.binding as llvm  # type: ignore[import-untyped]

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        target = llvm.Target.from_default_triple().create_target_machine(jit=True)
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
        engine.add_object_file(llvm.ObjectFileRef.from_data(compiled.code))
        engine.finalize_object()
        return cls(compiled.kinds, engine, engine.get_function_address)


def load(path: Path) -> Compiled | None:
    """The kept code; ``None`` if there is none, or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, rest = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(rest).digest() != digest:
        log.warning("the compiled kernels in %s are damaged; compiling them again", path)
        return None
    (length,) = _LENGTH.unpack_from(rest)
    end = _LENGTH.size + length
    return Compiled(json.loads(rest[_LENGTH.size : end]), rest[end:])


def keep(path: Path, compiled: Compiled) -> None:
    """Write the code where `load` finds it.

    A disk that cannot keep it costs only time, at the next start.
    """
    kinds = json.dumps(compiled.kinds).encode()
    rest = _LENGTH.pack(len(kinds)) + kinds + compiled.code
    try:
        replace_file(path, hashlib.sha256(rest).digest() + rest, sync=False)
    except OSError as error:
        log.warning("cannot cache the compiled kernels: %s", error)


def words_of(value: Any) -> list[int]:
    """The memory of a value, see above. The value must outlive its use."""
    if isinstance(value, tuple):
        return [word for field in value for word in words_of(field)]
    if isinstance(value, np.ndarray):
        address: int = value.__array_interface__["data"][0]
        return [0, 0, value.size, value.itemsize, address, *value.shape, *value.strides]
    if isinstance(value, float):
        (bits,) = struct.unpack("<q", struct.pack("<d", value))
        return [bits]
    return [int(value)]


def kinds_of(value: Any) -> str:
    """What the code depends on: the types of all fields, and the dimensions of arrays."""
    return json.dumps(_kinds(value), separators=(",", ":"))


def _kinds(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_kinds(field) for field in value]
    if isinstance(value, np.ndarray):
        order = "C" if value.flags.c_contiguous else "-"
        return f"{value.dtype.str}{value.ndim}{order}"
    return type(value).__name__


def address_of(words: NDArray[np.int64]) -> int:
    address: int = words.__array_interface__["data"][0]
    return address
