"""What comes through standard input: when it is read, and what is said while it does not end.

It is read to its end unless it is a terminal, cannot be read, or is a file that something else
has begun to read: the list of a ``while read`` loop is not for the command inside.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import stat
from collections.abc import Callable

from shammah.chat.attachments import UNKNOWN, Attachment, decode_text, read_bounded
from shammah.errors import ExitCode, ShammahError
from shammah.terminal.waiting import announced

NAME = "Standard input"

_BEGUN = (
    "Standard input is not read: something else has begun to read that file. -n says that this "
    "is right; `-f -` reads the rest of it."
)


def read_input(
    report: Callable[[str], None], *, asked: bool = False, wanted: bool = False
) -> Attachment | None:
    """The text that standard input has, with the file that it comes from.

    Args:
        tell: given a sentence when its end takes long to come, and one if it is left alone.
        asked: there is a question already.
        wanted: read it whatever it is.

    Raises:
        ShammahError: ``file_unreadable``, ``file_too_long``, ``file_not_text``.
    """
    try:
        mode = os.fstat(0).st_mode
        if os.isatty(0) and not wanted:
            return None
        if fcntl.fcntl(0, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
            return None
        if asked and not wanted and stat.S_ISREG(mode) and os.lseek(0, 0, os.SEEK_CUR):
            report(_BEGUN)
            return None
        waiting = f"Waiting for the end of standard input ({_kind(mode)}); -n ignores it."
        with announced(report, waiting):
            data = read_bounded(_Patient(), NAME)
    except OSError as error:
        why = f"{NAME} cannot be read: {error.strerror}."
        raise ShammahError("file_unreadable", why, exit_code=ExitCode.USAGE) from error
    text, replaced = decode_text(data, NAME)
    sources = _sources(mode) if text else ()
    return Attachment(NAME, text, sources, replaced)


class _Patient:
    """Standard input, whoever has set it to block or not."""

    def read(self, size: int) -> bytes:
        while True:
            select.select([0], [], [])
            with contextlib.suppress(BlockingIOError):
                return os.read(0, size)


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "a file")


def _sources(mode: int) -> tuple[str | None, ...]:
    """The path of the file that it is; `UNKNOWN` if the system does not tell."""
    if not stat.S_ISREG(mode):
        return ()
    try:
        return (os.readlink("/proc/self/fd/0"),)
    except FileNotFoundError:  # no /proc
        return (UNKNOWN,)
