"""The file ``history.db``: opened, migrated, and set aside when it is damaged."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from shammah.chat.record import BUSY_S
from shammah.errors import ShammahError
from shammah.history import search
from shammah.history.migrations import NewerVersionError, migrate
from shammah.history.snapshot import read_into_memory
from shammah.storage.disk import describe_remedy

_OF_THE_DISK = frozenset(
    {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR}
)
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


class DamagedError(ShammahError):
    """The file is no database (any more). `set_aside` makes room for a new one.

    Attributes:
        opened: which file that is (`identify`).
    """

    def __init__(self, path: Path, why: Exception, opened: tuple[int, int] | None) -> None:
        super().__init__("history_damaged", f"{path} is damaged ({why}).")
        self.opened = opened


class Database:
    """One connection. Use it from one thread, and close it.

    Attributes:
        indexed: whether there is an index of words to search in.
        refusal: set if the file can only be read; whoever wants to write gets it.

    Raises:
        ShammahError: from here and from every method. ``history_unusable``: the file cannot be
            made, read or written. ``history_busy``: another program has it locked.
            ``history_newer``: a newer Shammah wrote it. All leave it as it is.
        DamagedError: ``history_damaged``.
    """

    def __init__(self, path: Path, busy_s: float = BUSY_S) -> None:
        self.path = path
        self.indexed = False
        self.refusal: ShammahError | None = None
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None
        try:
            with self.explained():
                self._open(busy_s)
        except ShammahError as error:
            self.close()
            if not _is_of_the_disk(error.__cause__) or not self._read(error):
                raise

    def _open(self, busy_s: float) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite would make it readable for everybody; what it makes beside it is like it.
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        self._opened = identify(self.path)
        connection = sqlite3.connect(self.path, timeout=busy_s, isolation_level=None)
        self._connection = connection
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        self._bring_up_to_date(connection)

    def _read(self, refusal: ShammahError) -> bool:
        """Have what can be read of a file that cannot be written; false: nothing."""
        try:
            connection = self._connection = read_into_memory(self.path)
            self._bring_up_to_date(connection)
        except (ShammahError, sqlite3.Error, OSError):
            self.close()
            return False
        self._opened = identify(self.path)
        self.refusal = refusal
        return True

    def _bring_up_to_date(self, connection: sqlite3.Connection) -> None:
        # A byte that a disk has lost must not cost the rest of the conversation.
        connection.text_factory = lambda text: text.decode("utf-8", "replace")
        connection.execute("PRAGMA foreign_keys = ON")
        migrate(connection)
        self.indexed = search.available(connection)
        if self.indexed and not search.is_current(connection):
            self.build_index()

    def build_index(self) -> None:
        """Make the index of words anew."""
        with self.transaction("BEGIN IMMEDIATE") as connection:
            search.build(connection)

    @property
    def moved(self) -> bool:
        """Whether the path leads to another file now, or to none."""
        return self._opened != identify(self.path)

    def shrink(self) -> bool:
        """Give free pages back, and have nothing in the log; false if somebody is reading, so
        that the log keeps what it has until the last one that has the file open closes it."""
        with self.explained():
            connection = self._connected()
            self._check_writable()
            connection.execute("VACUUM")
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _check_writable(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            raise sqlite3.ProgrammingError("it is closed")
        return self._connection

    @contextlib.contextmanager
    def transaction(self, begin: str = "BEGIN") -> Iterator[sqlite3.Connection]:
        """What happens inside happens whole, or not at all."""
        with self.explained():
            connection = self._connected()
            if begin != "BEGIN":
                self._check_writable()
            connection.execute(begin)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Failures in our words."""
        try:
            yield
        except NewerVersionError as error:
            raise ShammahError(
                "history_newer",
                f"{self.path} was written by a newer Shammah, and is left alone.",
                "Update Shammah, or move the file away.",
            ) from error
        except (sqlite3.Error, OSError, ValueError, KeyError, TypeError) as error:
            # ValueError and its like: a row that none of ours has written.
            code = getattr(error, "sqlite_errorcode", None) or 0
            if code & 0xFF in _DAMAGED and self.refusal is None:
                raise DamagedError(self.path, error, self._opened) from error
            raise _unusable(self.path, error) from error


def set_aside(path: Path, opened: tuple[int, int] | None) -> Path | None:
    """Rename the file that was ``opened`` at ``path`` to ``history.db.damaged-TIME``.

    Several frontends may find the damage at once, and the second must not rename what the first
    has begun anew: under a lock, each looks whether the file is still the one it has opened.

    Raises:
        ShammahError: ``history_unusable``.
    """
    try:
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            if opened is None or identify(path) != opened:
                return None
            aside = _free_name(path.with_name(f"{path.name}.damaged-{_stamp()}"))
            # The log first: a new file must not find it.
            for end in ("-wal", "-shm", ""):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(f"{path}{end}", f"{aside}{end}")
            return aside
        finally:
            os.close(directory)
    except OSError as error:
        raise _unusable(path, error) from error


def identify(path: Path) -> tuple[int, int] | None:
    """Which file is at ``path``; ``None``: none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _stamp() -> str:
    return time.strftime("%Y%m%d-%H%M%S")


def _free_name(path: Path) -> Path:
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _unusable(path: Path, error: Exception) -> ShammahError:
    code = getattr(error, "sqlite_errorcode", None) or 0
    if code & 0xFF in _BUSY:
        what = f"{path} is locked by another program."
        return ShammahError("history_busy", what, "Try again in a moment.")
    why = error.strerror if isinstance(error, OSError) else error
    remedy = describe_remedy(path) if _is_of_the_disk(error) else ""
    return ShammahError("history_unusable", f"{path} cannot be used ({why}).", remedy)


def _is_of_the_disk(error: BaseException | None) -> bool:
    """Whether it is the disk or the permissions that do not let it be written."""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    return isinstance(error, OSError) or code in _OF_THE_DISK
