"""Byte code of modules that a confined worker had to compile: it may not keep it itself, since what
is kept there runs in every process to come. So it notes which modules these were, and the next
worker has them compiled before it is confined.
"""

from __future__ import annotations

import contextlib
import os
import py_compile
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

MOST = 20_000
"""Modules in one note."""


def compile_noted(note: Path) -> None:
    """Compile, in a process of its own, what workers before have noted."""
    try:
        sources = note.read_text("utf-8").splitlines()[:MOST]
        note.unlink()
    except (OSError, ValueError):
        return
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError):
            if os.fork() == 0:  # which init reaps
                os.nice(5)
                _compile(sources)
        os._exit(0)
    os.waitpid(child, 0)


def _compile(sources: list[str]) -> None:
    for source in dict.fromkeys(sources):
        # The note was written by a confined process: only modules, and only where they belong.
        inside = any(entry and source.startswith(f"{entry}/") for entry in sys.path)
        if inside and source.endswith(".py") and os.path.normpath(source) == source:
            with contextlib.suppress(OSError, py_compile.PyCompileError):
                py_compile.compile(source, quiet=2)


def note_compiled(note: Path) -> None:
    """Note from now on which modules this process compiles."""

    def set_data(loader: SourceFileLoader, path: str, data: bytes, **options: Any) -> None:
        with contextlib.suppress(OSError), note.open("a", encoding="utf-8") as file:
            file.write(f"{loader.path}\n")

    SourceFileLoader.set_data = set_data  # type: ignore[assignment]
