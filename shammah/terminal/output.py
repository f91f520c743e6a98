"""Lines on standard output and standard error, in one way for every command.

A terminal gets them broken between words at its own width; a pipe gets them as they are.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TextIO

from shammah.errors import ShammahError
from shammah.terminal.invocation import as_invoked
from shammah.terminal.printable import printable

USUAL_COLUMNS = 80
P = ParamSpec("P")


def echo(text: str, *, err: bool = False, hanging: str | None = None) -> None:
    """Print ``text``, without what a terminal would obey and with the commands that it quotes as
    they work here.

    Args:
        err: on standard error.
        hanging: what a line goes on with; ``None``: the blanks that it begins with.
    """
    stream = sys.stderr if err else sys.stdout
    text = as_invoked(printable(text))
    if stream.isatty():
        from shammah.terminal.wrap import fold  # what goes through a pipe does without

        text = fold(text, columns_of(stream), hanging)
    print(text, file=stream, flush=True)


def failing_as_json(command: Callable[P, int]) -> Callable[P, int]:
    """Have ``command``, with its option ``as_json``, print what it cannot do as an object, too:
    whoever reads its output as JSON gets some."""

    @functools.wraps(command)
    def run(*arguments: P.args, **options: P.kwargs) -> int:
        try:
            return command(*arguments, **options)
        except ShammahError as error:
            if options["as_json"]:
                import json  # `--help` does without

                told = {"code": error.code, "message": error.message, "hint": error.hint}
                print(json.dumps({"error": told, "text": ""}, ensure_ascii=False), flush=True)
            raise

    return run


def columns_of(stream: TextIO) -> int:
    """The width of the terminal that ``stream`` goes to, whatever the other streams go to."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or USUAL_COLUMNS
    except (OSError, ValueError):  # it is none, or it is closed
        return USUAL_COLUMNS
