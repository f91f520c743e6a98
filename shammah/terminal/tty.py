"""The terminal before and without the editor.

At first the terminal itself is the editor: it echoes, buffers and delivers whole lines, so what is
typed while Python imports is neither lost nor doubled. The editor takes over an unfinished line
when it is loaded.
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

PASTE_BEGIN, PASTE_END = "\x1b[200~", "\x1b[201~"
"""What a terminal puts around pasted text (bracketed paste)."""
PASTE_ON = b"\x1b[?2004h"
"""Switches that on; `shammah.__main__` does so first, and off again."""

CLEAR_LINE = b"\r\x1b[K"
LINE_BYTES = 65536
PASTE_MS = 1000
"""A paste that pauses for so long has lost its end."""


def wait_line(other_fd: int | None = None, *, wait: bool = True) -> str | None:
    """Return the next whole line from the terminal, without its end; ``None`` once ``other_fd`` is
    readable and no line is waiting.

    Args:
        wait: false: only a line that is already there. Call so before the editor takes over: it
            would get a Ctrl-D that the terminal has buffered as a zero byte.

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
    """Return what the terminal delivers now, without its end.

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
    """Decode as UTF-8, which most terminals speak in any locale, else as the locale says."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode(sys.stdin.encoding, "replace")


def read_paste(begun: str) -> str:
    """Return ``begun``, which begins a paste, up to the paste's end and what was typed since.

    The last line of a paste has no end for the terminal to wait for, so it is read by bytes.
    """
    poll = select.poll()
    poll.register(0, select.POLLIN)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = begun

    def read_on(wait_ms: int) -> bool:
        nonlocal text
        data = b""
        if poll.poll(wait_ms):
            with contextlib.suppress(OSError):  # the next read finds that it was closed
                data = os.read(0, LINE_BYTES)
        text += decoder.decode(data)
        return bool(data)

    with _mode(off=termios.ECHO | termios.ICANON):
        while in_paste(text) and read_on(PASTE_MS):
            pass
    while read_on(
        0
    ):  # in line mode, the terminal would take the beginning of a line for a whole one
        pass
    return text


def in_paste(text: str) -> bool:
    """Return whether ``text`` begins a paste that it does not end."""
    return text.rfind(PASTE_BEGIN) > text.rfind(PASTE_END)


def split_paste(text: str) -> tuple[str, str]:
    """Split ``text`` after its last paste."""
    if in_paste(text):
        return text, ""
    pasted, mark, typed = text.rpartition(PASTE_END)
    return pasted + mark, typed


def without_marks(text: str) -> str:
    """Return ``text`` without the marks of a paste."""
    return text.replace(PASTE_BEGIN, "").replace(PASTE_END, "")


def take_terminal() -> bool:
    """Make the terminal standard input, which may be a pipe that was read to its end; return
    whether there is one and this process may read it (a background job may not)."""
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
    """Echo what is typed meanwhile, for another program."""
    return _mode(on=termios.ECHO)


def echo_off() -> AbstractContextManager[None]:
    """Hide what is typed during an answer; the next prompt shows it."""
    return _mode(off=termios.ECHO)


@contextlib.contextmanager
def _mode(*, on: int = 0, off: int = 0) -> Iterator[None]:
    """Set and clear local modes meanwhile, with TCSANOW, since TCSAFLUSH would discard what was
    typed. Ctrl-C stays a signal."""
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
