"""Questions that a person answers at the terminal."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
from collections.abc import Callable

from shammah.terminal.tty import echo_on, take_line, without_marks

POLL_MS = 50


def ask(
    show: Callable[[str], None], question: str, cancelled: Callable[[], bool] = lambda: False
) -> str | None:
    """Return the line typed at ``question``, without its end; ``None`` when ``cancelled`` or the
    terminal is gone. What was typed before ``show`` showed it is not an answer, and thrown away.

    Raises:
        KeyboardInterrupt: Ctrl-C, unless it has another handler.
    """
    with contextlib.suppress(termios.error):
        termios.tcflush(0, termios.TCIFLUSH)
    show(question)
    poll = select.poll()
    poll.register(0, select.POLLIN)
    with echo_on(), contextlib.suppress(EOFError):
        while not cancelled():
            if poll.poll(POLL_MS):
                return without_marks(take_line())
        with contextlib.suppress(OSError):
            os.write(0, b"\n")  # after the ^C that the terminal has shown
    return None


def _write_to_stderr(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def confirm(
    question: str,
    *,
    enter: bool = False,
    show: Callable[[str], None] = _write_to_stderr,
    cancelled: Callable[[], bool] = lambda: False,
) -> bool:
    """Return whether the person says yes; anything else is a no.

    Args:
        enter: what an empty line means.
        show: writes the question.

    Raises:
        KeyboardInterrupt: as `ask`.
    """
    choices = f"[y]es, [n]o{'; Enter: yes' if enter else ''}: "
    try:
        line = ask(show, f"{question} {choices}", cancelled)
    except KeyboardInterrupt:
        show("\n")
        raise
    if line is None and not cancelled():  # Ctrl-D
        show("\n")
    return agrees(line, enter=enter)


def agrees(line: str | None, *, enter: bool = False) -> bool:
    """Return whether ``line`` is a yes. ``enter``: what an empty one means."""
    said = line.strip().lower() if line is not None else "no"
    return said in ("y", "yes") or (enter and not said)
