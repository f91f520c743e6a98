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

EDITORS = ("editor", "nano", "vi")
"""What is looked for where neither ``VISUAL`` nor ``EDITOR`` says which."""


def edit_text(text: str, name: str = "question.md") -> str:
    """What becomes of ``text`` in the editor, which sees a file called ``name``.

    Raises:
        ShammahError: ``editor``: there is none, or it failed.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="shammah-") as directory:
            file = Path(directory, name)  # 0700: nobody else reads it
            file.write_text(text + "\n", "utf-8", "replace")
            with _interrupts_are_the_editors():
                _run_editor(str(file))
            return file.read_text("utf-8-sig", "replace").removesuffix("\n")
    except OSError as error:
        what = f"The text could not be given to an editor ({error.strerror or error})."
        raise ShammahError("editor", what) from error


@contextlib.contextmanager
def _interrupts_are_the_editors() -> Iterator[None]:
    """Ctrl-C in it is one of its keys. A handler, not SIG_IGN, which it would inherit."""
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _run_editor(file: str) -> None:
    chosen = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    for command in [chosen] if chosen else EDITORS:
        try:
            with echo_on():
                status = subprocess.call([*shlex.split(command), file])
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise ShammahError("editor", f"{command} cannot be run ({error}).") from error
        if status:
            raise ShammahError("editor", f"{command} ended with status {status}.")
        return
    what = f"There is no {chosen}." if chosen else "There is no editor."
    raise ShammahError("editor", what, "Set EDITOR to the one that you use.")
