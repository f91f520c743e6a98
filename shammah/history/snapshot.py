"""What is in a history file that cannot be opened for writing: read into memory."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from pathlib import Path

_SHARED_MEMORY = "/dev/shm"
"""Where a copy has room if the disk with the temporary files is the full one."""


def read_into_memory(path: Path) -> sqlite3.Connection:
    """A database in memory with all that is in the one at ``path``, and that need not be able to
    write beside it, as SQLite otherwise wants to.

    Raises:
        OSError: it cannot be read, or its log cannot be copied to anywhere.
        sqlite3.Error: it is no database.
    """
    memory = sqlite3.connect(":memory:", isolation_level=None)
    try:
        with contextlib.ExitStack() as stack:
            log = path.with_name(f"{path.name}-wal")
            # Without a log the file is complete, and nobody changes it. Otherwise SQLite has to
            # work the log in, which it does to a copy.
            immutable = not log.exists() or not log.stat().st_size
            place = path if immutable else _copy(path, log, stack)
            uri = f"{place.absolute().as_uri()}?{'immutable=1' if immutable else 'mode=rw'}"
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as source:
                source.backup(memory)
    except BaseException:
        memory.close()
        raise
    return memory


def _copy(path: Path, log: Path, stack: contextlib.ExitStack) -> Path:
    failure: OSError | None = None
    for parent in (None, _SHARED_MEMORY):
        try:
            directory = stack.enter_context(tempfile.TemporaryDirectory(dir=parent))
            for file in (log, path):
                shutil.copyfile(file, Path(directory, file.name))
            return Path(directory, path.name)
        except OSError as error:
            failure = error
    assert failure is not None
    raise failure
