"""One log file per role, rotated while the worker runs.

The file is the worker's stdout and stderr, so that a message of a C library or a crash trace
lands there too. It never holds a question, an answer or a key.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shammah.errors import ShammahError
from shammah.storage.disk import open_log

MAX_BYTES = 2 * 1024 * 1024
KEPT_FILES = 3


def configure_logging(role: str) -> None:
    """Send log lines to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Formatter(f"%(asctime)s %(levelname)s {role}[%(process)d] %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    sys.excepthook = lambda kind, error, place: _log_uncaught(error)
    threading.excepthook = lambda uncaught: _log_uncaught(uncaught.exc_value)


def _log_uncaught(error: BaseException | None) -> None:
    logging.getLogger(__name__).critical("a thread failed", exc_info=error)


class _Formatter(logging.Formatter):
    """Of an exception it shows the type and the places: a library's message may quote an answer."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return "".join(_raised(ei[1])).rstrip("\n")


def _raised(error: BaseException) -> Iterator[str]:
    """A traceback, the first cause first."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _raised(before)
        yield "\nThen:\n\n"
    yield "Traceback (most recent call last):\n"
    yield from traceback.format_tb(error.__traceback__)
    yield f"{describe(error)}\n"


def describe(error: BaseException) -> str:
    """What an unforeseen error is, in words that can be shown to anybody.

    Its own message is left out, since a library's may quote a question or an answer; not so the
    system's and ours.
    """
    said = f": {error}" if isinstance(error, OSError | ShammahError) else ""
    return f"{type(error).__name__}{said}"


class LogFile:
    """``<home>/logs/ROLE.log`` with ``ROLE.log.1`` ... behind it."""

    def __init__(self, home: Path, role: str, max_bytes: int = MAX_BYTES) -> None:
        self.path = home / "logs" / f"{role}.log"
        self._max_bytes = max_bytes

    def adopt(self) -> None:
        """Make the file this process's stdout and stderr; nothing, where it cannot be written."""
        fd = open_log(self.path)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)

    def rotate_if_long(self) -> bool:
        """Begin a new file when this one has grown past its limit."""
        try:
            if os.fstat(2).st_size < self._max_bytes:
                return False
        except OSError:
            return False
        names = [self.path, *(self._older(number) for number in range(1, KEPT_FILES + 1))]
        for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
            # Somebody may have tidied up; a missing log must not end a worker.
            with contextlib.suppress(OSError):
                newer.replace(older)
        with contextlib.suppress(OSError):
            self.adopt()
        return True

    def _older(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")
