"""One way to open, migrate, mend and put aside our databases.

They are in WAL mode: readers never wait, writers wait for each other. Each change is one
transaction, so SIGKILL at any moment loses at most that one. Any call may wait, so none is made on
the thread that answers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from shammah import __version__
from shammah.errors import ShammahError
from shammah.storage.disk import describe_remedy

Result = TypeVar("Result")
Step = Callable[[sqlite3.Connection], None]

_OF_THE_DISK = frozenset(
    {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR}
)
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})

_SHARED_MEMORY = "/dev/shm"
"""Where a copy fits if the disk with the temporary files is the full one."""


def nothing(connection: sqlite3.Connection) -> None:
    """A `Step` that does nothing."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of database.

    Attributes:
        code: begins the codes of its errors.
        title: its name at the beginning of a sentence.
        migrations: each takes the file from the version before it to its own; ``PRAGMA
            user_version`` is the one reached, and the table ``migrations`` says when and by which
            Shammah. Append, never change: files of every version are out there.
        prepare: checks a migrated file, outside of any transaction.
        mend: rebuilds from the rest what can be rebuilt of a damaged file.
        consequence: what follows if it cannot be used, as the end of a sentence.
        hint: a sentence for that case; empty: what to do about the disk.
    """

    code: str
    title: str
    migrations: tuple[Step, ...]
    prepare: Step = nothing
    mend: Step = nothing
    consequence: str = ""
    hint: str = ""


class _NewerVersionError(sqlite3.DatabaseError):
    """The file was written by a newer Shammah."""


class _DamagedError(ShammahError):
    """The file is not a database, or not any more."""


class Database:
    """One connection, opened at the first call, and again if the file was replaced. Use it from one
    thread, and close it.

    A file that can be read but not written is read from a copy in memory; a damaged one is put
    aside, and a new one started.

    Args:
        path: the file.
        kind: what is in it.
        busy_s: how long it waits for another writer, in seconds.
        report: called with a sentence for people when a damaged file was put aside.

    Raises:
        ShammahError: from every method but `close`, with the code of the kind and: ``_unusable``:
            the file cannot be created, read or written. ``_busy``: another program locks it.
            ``_newer``: a newer Shammah wrote it. All leave it unchanged.
    """

    def __init__(
        self, path: Path, kind: Kind, busy_s: float, report: Callable[[str], None] = lambda _: None
    ) -> None:
        self.path = path
        self._kind = kind
        self._busy_s = busy_s
        self._report = report
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None
        self._copied = False

    def run(self, work: Callable[[sqlite3.Connection], Result], *, write: bool = False) -> Result:
        """Return what ``work`` returns. It takes effect whole or not at all, but may run twice."""
        try:
            return self._run(work, write=write)
        except _DamagedError:
            return self._run_mended(work, write=write)
        finally:
            if self._copied:
                self.close()  # the disk may have room the next time

    def _run_mended(self, work: Callable[[sqlite3.Connection], Result], *, write: bool) -> Result:
        try:
            self._run(self._kind.mend, write=True)
            return self._run(work, write=write)
        except _DamagedError:
            self.close()
            self._put_aside()
            return self._run(work, write=write)

    def _run(self, work: Callable[[sqlite3.Connection], Result], *, write: bool) -> Result:
        with self._explained():
            return transact(self._open(write=write), work, write=write)

    def shrink(self) -> bool:
        """Return free pages to the disk and empty the log. False if another process is reading: the
        log then keeps its content until the last process closes the file."""
        with self._explained():
            connection = self._open(write=True)
            connection.execute("VACUUM")
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy

    def close(self) -> None:
        """The next call opens it again."""
        self._copied = False
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self, *, write: bool) -> sqlite3.Connection:
        if self._connection is not None and self._opened != _identify(self.path):
            self.close()  # deleted, or put aside by another frontend
        if self._connection is None:
            try:
                self._connection = self._connect()
            except (sqlite3.Error, OSError) as error:
                if write or not _is_of_the_disk(error):
                    raise
                self._copied = True
                try:
                    self._connection = self._ready(_read_into_memory(self.path))
                except (ShammahError, sqlite3.Error, OSError):
                    raise error from None
                self._opened = _identify(self.path)
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite would make it readable for everybody, and its log gets the same mode.
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        self._opened = _identify(self.path)
        connection = sqlite3.connect(self.path, timeout=self._busy_s, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
        return self._ready(connection)

    def _ready(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        """Return ``connection``, migrated to the present version."""
        try:
            # A byte that a disk has lost must not cost the rest.
            connection.text_factory = lambda text: text.decode("utf-8", "replace")
            connection.execute("PRAGMA foreign_keys = ON")
            _migrate(connection, self._kind.migrations)
            self._kind.prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _put_aside(self) -> None:
        """Rename the file that was opened to ``NAME.damaged-TIME``.

        Several frontends may find the damage at once, and the second must not rename the new file
        of the first: under a lock, each checks that the file is still the one it opened.
        """
        with self._explained(), _locked(self.path.parent):
            if self._opened is None or _identify(self.path) != self._opened:
                return
            stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
            aside = self.path.with_name(f"{self.path.name}.damaged-{stamp}")
            # The log first: the new file must not find it.
            for end in ("-wal", "-shm", ""):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(f"{self.path}{end}", f"{aside}{end}")
        self._report(
            f"{self._kind.title} was damaged. It was moved to {aside}, and a new one was started. "
            f"To recover what is readable: `sqlite3 {aside.name} .recover`."
        )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn failures into errors for people."""
        try:
            yield
        except _NewerVersionError as error:
            raise ShammahError(
                f"{self._kind.code}_newer",
                f"{self.path} was written by a newer Shammah, and was left unchanged.",
                "Update Shammah, or move the file away.",
            ) from error
        except (sqlite3.Error, OSError, ValueError, KeyError, TypeError) as error:
            # ValueError and the like: a row that Shammah did not write.
            if _code(error) in _DAMAGED and not self._copied:
                what = f"{self.path} is damaged ({error})."
                raise _DamagedError(f"{self._kind.code}_damaged", what) from error
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> ShammahError:
        kind = self._kind
        if _code(error) in _BUSY:
            what = f"{self.path} is locked by another program{kind.consequence}."
            return ShammahError(f"{kind.code}_busy", what, kind.hint or "Try again in a moment.")
        why = error.strerror if isinstance(error, OSError) else error
        what = f"{self.path} cannot be used ({why}){kind.consequence}."
        remedy = describe_remedy(self.path) if _is_of_the_disk(error) else ""
        return ShammahError(f"{kind.code}_unusable", what, kind.hint or remedy)


def transact(
    connection: sqlite3.Connection,
    work: Callable[[sqlite3.Connection], Result],
    *,
    write: bool = True,
) -> Result:
    """Return what ``work`` returns; it takes effect whole or not at all."""
    connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
    try:
        result = work(connection)
        connection.execute("COMMIT")
        return result
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _migrate(connection: sqlite3.Connection, migrations: tuple[Step, ...]) -> None:
    """Migrate the file to the present version, or leave it unchanged."""

    def step_up(connection: sqlite3.Connection) -> None:
        version = _version(connection)  # another frontend may have been faster
        if version > len(migrations):
            raise _NewerVersionError("it was written by a newer Shammah")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations "
            "(version INTEGER PRIMARY KEY, at REAL NOT NULL, by TEXT NOT NULL)"
        )
        for number, step in enumerate(migrations[version:], version + 1):
            step(connection)
            row = (number, time.time(), __version__)
            connection.execute("INSERT INTO migrations VALUES (?, ?, ?)", row)
        connection.execute(f"PRAGMA user_version = {len(migrations)}")

    if _version(connection) != len(migrations):
        transact(connection, step_up)


def _version(connection: sqlite3.Connection) -> int:
    """Return the version of the file; 0 for an empty one."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _read_into_memory(path: Path) -> sqlite3.Connection:
    """Copy the database at ``path`` into memory, without writing next to it as SQLite otherwise
    does.

    Raises:
        OSError: it cannot be read, or its log cannot be copied anywhere.
        sqlite3.Error: it is not a database.
    """
    memory = sqlite3.connect(":memory:", isolation_level=None)
    try:
        with contextlib.ExitStack() as stack:
            log = path.with_name(f"{path.name}-wal")
            # Without a log the file is complete, and no process changes it. Otherwise SQLite has to
            # merge the log, which it does in a copy.
            immutable = not log.exists() or not log.stat().st_size
            place = path if immutable else _copy(path, log, stack)
            uri = f"{place.absolute().as_uri()}?{'mode=ro&immutable=1' if immutable else 'mode=rw'}"
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


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _identify(path: Path) -> tuple[int, int] | None:
    """Return which file is at ``path``, or ``None``."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _code(error: BaseException) -> int:
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def _is_of_the_disk(error: BaseException) -> bool:
    """Return whether the disk or the permissions prevent writing."""
    return isinstance(error, OSError) or _code(error) in _OF_THE_DISK
