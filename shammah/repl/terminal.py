"""The terminal before, beside and without the editor.

At first the terminal itself is the editor: it echoes, buffers and hands over whole lines, so
what is typed while Python imports is neither lost nor doubled. The editor takes the rest of
the line over when it is loaded.
"""

from __future__ import annotations

import contextlib
import os
import select
import termios
from collections.abc import Iterator

CLEAR_LINE = b"\r\x1b[K"
LINE_BYTES = 65536


def wait_line(other_fd: int | None) -> str | None:
    """The next whole line from the terminal, without its end; ``None`` once ``other_fd`` is
    readable and no line is waiting.

    Raises:
        EOFError: Ctrl-D on an empty line, or the terminal is gone.
        KeyboardInterrupt: Ctrl-C.
    """
    poll = select.poll()
    poll.register(0, select.POLLIN)
    if other_fd is not None:
        poll.register(other_fd, select.POLLIN)
    ready = {fd for fd, _ in poll.poll()}
    return _take_line() if 0 in ready else None


def pending_line() -> str | None:
    """A whole line (or the end) that was typed while nobody read, without its end; else ``None``.

    To be asked before the editor takes over: a Ctrl-D that the terminal has buffered would reach
    the editor as a zero byte.

    Raises:
        EOFError: as `wait_line`.
    """
    poll = select.poll()
    poll.register(0, select.POLLIN)
    return _take_line() if poll.poll(0) else None


def _take_line() -> str:
    try:
        line = os.read(0, LINE_BYTES)
    except OSError as error:  # EIO: the terminal was closed
        raise EOFError from error
    if not line:
        raise EOFError
    return line.decode("utf-8", "replace").rstrip("\r\n")


@contextlib.contextmanager
def echo_off() -> Iterator[None]:
    """Let what is typed during an answer wait unseen; the next prompt shows it.

    TCSANOW, not TCSAFLUSH, which would throw it away. Ctrl-C stays a signal.
    """
    try:
        before = termios.tcgetattr(0)
    except termios.error:
        yield
        return
    quiet = list(before)
    quiet[3] = before[3] & ~termios.ECHO
    termios.tcsetattr(0, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(0, termios.TCSANOW, before)
