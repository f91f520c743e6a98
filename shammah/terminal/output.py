"""Lines on standard output and standard error, for every command.

A terminal gets them wrapped at its own width; a pipe gets them as they are.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, TextIO

from shammah.errors import ShammahError
from shammah.terminal.invocation import as_invoked
from shammah.terminal.text import fold, printable

if TYPE_CHECKING:
    from shammah.bus.messages import Failed


def echo(text: str, *, err: bool = False, hanging: str | None = None) -> None:
    """Print ``text``, without what a terminal would obey, and with its commands as they work here.

    Args:
        err: on standard error.
        hanging: the indent of a wrapped line; ``None``: that of its beginning.
    """
    stream = sys.stderr if err else sys.stdout
    text = as_invoked(printable(text))
    if stream.isatty():
        text = fold(text, columns_of(stream), hanging)
    print(text, file=stream, flush=True)


def print_json(document: object) -> None:
    """Print one line of JSON."""
    import json  # `--help` does without

    print(json.dumps(document, ensure_ascii=False), flush=True)


def describe_error(error: ShammahError | Failed) -> dict[str, str]:
    """Return ``error`` for programs."""
    return {"code": error.code, "message": error.message, "hint": error.hint}


def columns_of(stream: TextIO) -> int:
    """Return the width of the terminal that ``stream`` is."""
    return size_of(stream)[0]


def size_of(stream: TextIO) -> tuple[int, int]:
    """Return columns and rows of the terminal that ``stream`` is; 80 by 24 if it is none."""
    columns = rows = 0
    with contextlib.suppress(OSError, ValueError):  # it is none, or it is closed
        columns, rows = os.get_terminal_size(stream.fileno())
    return columns or 80, rows or 24
