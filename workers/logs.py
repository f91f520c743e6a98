"""One log file per role, rotated while the worker runs.

The file is the worker's stdout and stderr, so that a message of a C library or a crash trace
lands there too. It never holds a question, an answer or a key.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

MAX_BYTES = 2 * 1024 * 1024
KEPT_FILES = 3


def configure_logging(role: str) -> None:
    """Send log lines to stderr."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format=f"%(asctime)s %(levelname)s {role}[%(process)d] %(name)s: %(message)s",
    )


class LogFile:
    """``<home>/logs/ROLE.log`` with ``ROLE.log.1`` ... behind it."""

    def __init__(self, home: Path, role: str, max_bytes: int = MAX_BYTES) -> None:
        self.path = home / "logs" / f"{role}.log"
        self._max_bytes = max_bytes

    def adopt(self) -> None:
        """Make the file this process's stdout and stderr."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
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
        for number in range(KEPT_FILES - 1, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            if older.exists():
                older.replace(older.with_name(f"{self.path.name}.{number + 1}"))
        self.path.replace(self.path.with_name(f"{self.path.name}.1"))
        self.adopt()
        return True
