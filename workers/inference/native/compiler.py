"""Compiles the kernels: numba, with a cache of machine code in a directory of ours.

A module with kernels is imported after `prepare`, since numba asks where to cache when it sees
a function, not when it compiles it. The directory is named after the sources: numba compiles a
function anew when its own file has changed, but not when a function that it calls has.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

_DIGITS = 12


def kernel_directory(home: Path) -> Path:
    """Where machine code is kept: with this installation if it may be written, so that it is
    compiled once for all homes; else in ``home``."""
    shared = Path(sys.prefix, "share", "shammah")
    return (shared if os.access(shared, os.W_OK) else home) / "kernels"


def prepare(directory: Path) -> None:
    """Let what is compiled from now on be kept below ``directory``; imports numba."""
    from numba.core import config

    own = directory / _digest_of_sources()
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    config.CACHE_DIR = str(own)  # type: ignore[attr-defined]


def entry(function: Kernel) -> Kernel:
    """Compile on the first call ever, together with all that it calls, and keep the code."""
    import numba

    return cast(Kernel, numba.njit(nogil=True, cache=True, error_model="numpy")(function))


def compiled(function: Kernel) -> Kernel:
    """For what only kernels call. Arithmetic is done as written, in the order written."""
    return _inner(function, fastmath=False)


def compiled_freely(function: Kernel) -> Kernel:
    """For what only kernels call. Sums may be formed in another order, always the same one.

    Loops over numbers are vectorised by this. Infinities and NaNs must not occur.
    """
    return _inner(function, fastmath=True)


def operation(define: Callable[..., Any]) -> Callable[..., Any]:
    """An operation for kernels, defined by the LLVM instructions that it becomes."""
    from numba.extending import intrinsic

    return cast(Callable[..., Any], intrinsic(define))


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
