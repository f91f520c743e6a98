"""Lines on standard output and standard error, for every command.

A terminal gets them wrapped at its own width; a pipe gets them as they are. The commands that they
name work when they are typed, however this program was called.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

from shammah.errors import ShammahError
from shammah.terminal.text import fold, printable

if TYPE_CHECKING:
    from shammah.bus.messages import Failed

NAME = "shammah"
PROGRAM_VARIABLE = "SHAMMAH_PROGRAM"
"""The name of a script that starts this program (``scripts/run``)."""

_QUOTED = re.compile(rf"(?<=`){NAME}(?=[ `])")


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


def styled(text: str, code: str, environ: Mapping[str, str], *, terminal: bool) -> str:
    """Return ``text`` in an SGR style on a terminal that wants it (https://no-color.org)."""
    if not terminal or not wants_style(environ):
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


def wants_style(environ: Mapping[str, str]) -> bool:
    """Return whether a terminal in ``environ`` wants styles."""
    return not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def as_invoked(text: str) -> str:
    """Return ``text`` with the commands in backticks as they work here."""
    return _QUOTED.sub(lambda found: program(), text)


@functools.cache
def program() -> str:
    """Return ``shammah`` if a shell finds it by that name, else what was typed to start this."""
    if named := os.environ.get(PROGRAM_VARIABLE):
        import shlex

        return shlex.quote(named)
    called = sys.argv[0]
    if os.path.basename(called) != NAME:
        return NAME
    import shlex
    import shutil

    found = shutil.which(NAME)
    if found is not None and os.path.realpath(found) == os.path.realpath(called):
        return NAME
    return shlex.quote(called)
