"""The terminal before, beside and without the editor.

At first the terminal itself is the editor: it echoes, buffers and hands over whole lines, so
what is typed while Python imports is neither lost nor doubled. The editor takes the rest of
the line over when it is loaded.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import sys
import termios
from collections.abc import Iterator
from contextlib import AbstractContextManager

from shammah.terminal import paste

CLEAR_LINE = b"\r\x1b[K"
LINE_BYTES = 65536
PASTE_MS = 1000
"""A paste of which no more comes for so long has lost its end."""


def wait_line(other_fd: int | None = None, *, wait: bool = True) -> str | None:
    """The next whole line from the terminal, without its end; ``None`` once ``other_fd`` is
    readable and no line is waiting.

    Args:
        wait: else only one that was typed while nobody read. To be asked before the editor takes
            over: a Ctrl-D that the terminal has buffered would reach that as a zero byte.

    Raises:
        EOFError: Ctrl-D on an empty line, or the terminal is gone.
        KeyboardInterrupt: Ctrl-C.
    """
    poll = select.poll()
    poll.register(0, select.POLLIN)
    if other_fd is not None:
        poll.register(other_fd, select.POLLIN)
    ready = {fd for fd, _ in poll.poll(None if wait else 0)}
    return take_line() if 0 in ready else None


def take_line() -> str:
    """What the terminal hands over now, without its end.

    Raises:
        EOFError: as `wait_line`.
    """
    try:
        line = os.read(0, LINE_BYTES)
    except OSError as error:  # EIO: the terminal was closed
        raise EOFError from error
    if not line:
        raise EOFError
    return _decode(line).rstrip("\r\n")


def _decode(line: bytes) -> str:
    """Most terminals speak UTF-8, whatever the locale says; one that does not speaks that."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode(sys.stdin.encoding, "replace")


def read_paste(begun: str) -> str:
    """``begun``, which begins a paste, to the end of that, and what was typed since.

    Its last line has no end that the terminal would wait for, so it is not asked for lines.
    """
    poll = select.poll()
    poll.register(0, select.POLLIN)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = begun

    def read_on(wait_ms: int) -> bool:
        nonlocal text
        data = b""
        if poll.poll(wait_ms):
            with contextlib.suppress(OSError):  # the next look finds that it was closed
                data = os.read(0, LINE_BYTES)
        text += decoder.decode(data)
        return bool(data)

    with _mode(off=termios.ECHO | termios.ICANON):
        while paste.is_open(text) and read_on(PASTE_MS):
            pass
    while read_on(0):  # in lines again, it would take the beginning of one for a whole one
        pass
    return text


def take_terminal() -> bool:
    """Have the terminal for standard input, which may be a pipe that was read to its end; whether
    there is one, and it is ours to read (that of a background job is not)."""
    if os.isatty(0):
        return True
    try:
        terminal = os.open("/dev/tty", os.O_RDWR)
    except OSError:
        return False
    try:
        ours = os.tcgetpgrp(terminal) == os.getpgrp()
        if ours:
            os.dup2(terminal, 0)
    except OSError:
        ours = False
    os.close(terminal)
    return ours


def echo_on() -> AbstractContextManager[None]:
    """Let what is typed be seen meanwhile: for a program that is not ours."""
    return _mode(on=termios.ECHO)


def echo_off() -> AbstractContextManager[None]:
    """Let what is typed during an answer wait unseen; the next prompt shows it."""
    return _mode(off=termios.ECHO)


@contextlib.contextmanager
def _mode(*, on: int = 0, off: int = 0) -> Iterator[None]:
    """Set and clear local modes meanwhile. TCSANOW, not TCSAFLUSH, which would throw away what
    was typed. Ctrl-C stays a signal."""
    try:
        before = termios.tcgetattr(0)
    except termios.error:
        yield
        return
    wanted = list(before)
    wanted[3] = (before[3] | on) & ~off
    if off & termios.ICANON:
        wanted[6] = list(before[6])
        wanted[6][termios.VMIN], wanted[6][termios.VTIME] = 1, 0
    termios.tcsetattr(0, termios.TCSANOW, wanted)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(0, termios.TCSANOW, before)
