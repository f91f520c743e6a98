"""A text in the person's own editor."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shammah.errors import ShammahError
from shammah.terminal.tty import echo_on

HINT = "Set EDITOR to an editor that is installed."
EDITORS = ("editor", "nano", "vim", "vi")
"""What is tried if neither ``VISUAL`` nor ``EDITOR`` is set."""


def edit_text(text: str, name: str = "question.md") -> str:
    """Have ``text`` edited, in a file called ``name``, and return the result.

    Raises:
        ShammahError: as `edit_file`.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="shammah-") as directory:
            file = Path(directory, name)  # 0700: nobody else reads it
            file.write_text(text + "\n", "utf-8", "replace")
            edit_file(file)
            return file.read_text("utf-8-sig", "replace").removesuffix("\n")
    except OSError as error:
        what = f"Couldn't open the text in an editor: {error.strerror or error}."
        raise ShammahError("editor_failed", what) from error


def edit_file(file: Path) -> None:
    """Open ``file`` in ``VISUAL``, ``EDITOR`` or one of `EDITORS`, and wait until it exits.

    Raises:
        ShammahError: ``no_editor``, ``editor_failed``.
    """
    chosen = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    for command in [chosen] if chosen else EDITORS:
        try:
            with _interrupts_are_the_editors(), echo_on():
                status = subprocess.call([*shlex.split(command), str(file)])
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise ShammahError("no_editor", f"Couldn't run {command}: {error}.", HINT) from error
        if status:
            raise ShammahError("editor_failed", f"{command} exited with status {status}.")
        return
    raise ShammahError("no_editor", f"{chosen or 'An editor'} was not found.", HINT)


@contextlib.contextmanager
def _interrupts_are_the_editors() -> Iterator[None]:
    """Leave Ctrl-C to the editor. With a handler, since it would inherit SIG_IGN."""
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
