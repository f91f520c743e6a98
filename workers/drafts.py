"""Models and packed weights that are not whole yet. Whoever makes some holds a lock on them, which
the kernel drops however that process ends: so what a killed one has left is told from what is
being made."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

ENDING = ".making"

UNUSED_S = 7 * 24 * 3600.0
"""Where there are no locks (some network file systems), age alone decides."""

YOUNG_S = 1.0
"""One that was made this moment may not be held yet."""


@contextlib.contextmanager
def held(draft: Path) -> Iterator[None]:
    """Keep others from removing ``draft``, a file or a directory."""
    descriptor = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def remove_abandoned(directory: Path, now: float, begin: str = "") -> Iterator[Path]:
    """Remove the drafts in ``directory`` that nobody makes any more; what was removed.

    Args:
        directory: where drafts are made.
        now: seconds since 1970.
        begin: only those whose names begin so.
    """
    for draft in sorted(directory.glob(f"{glob.escape(begin)}*{ENDING}")):
        with contextlib.suppress(OSError):  # whole, or removed, by now
            age = now - draft.stat().st_mtime
            if age > YOUNG_S and (_is_free(draft) or age > UNUSED_S):
                if draft.is_dir():
                    shutil.rmtree(draft, ignore_errors=True)
                else:
                    draft.unlink()
                yield draft


def _is_free(draft: Path) -> bool:
    descriptor = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
