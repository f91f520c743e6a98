"""The form of ``history.db``, version by version.

Each function takes the file from the version before it to its own; `MIGRATIONS` has them in
order. ``PRAGMA user_version`` is the version reached, and the table ``migrations`` tells when
and by which Shammah. Append, never change: files of every version are out there.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

from shammah import __version__
from shammah.history import search


class NewerVersionError(sqlite3.DatabaseError):
    """The file was written by a newer Shammah."""


def _keep_turns(database: sqlite3.Connection) -> None:
    """Version 1: conversations and their turns.

    AUTOINCREMENT: the number of a conversation that was removed means no other one later.
    """
    database.execute(
        "CREATE TABLE migrations (version INTEGER PRIMARY KEY, at REAL NOT NULL, by TEXT NOT NULL)"
    )
    database.execute(
        """
        CREATE TABLE conversations (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            started REAL NOT NULL,
            latest REAL NOT NULL,
            turns INTEGER NOT NULL,
            title TEXT NOT NULL,
            system TEXT NOT NULL,
            system_private INTEGER NOT NULL
        )
        """
    )
    database.execute("CREATE INDEX conversations_latest ON conversations (latest, number)")
    database.execute(
        """
        CREATE TABLE turns (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            conversation INTEGER NOT NULL REFERENCES conversations ON DELETE CASCADE,
            key TEXT NOT NULL UNIQUE,
            at REAL NOT NULL,
            question TEXT NOT NULL,
            answer TEXT NOT NULL,
            target TEXT NOT NULL,
            model TEXT NOT NULL,
            reason TEXT NOT NULL,
            finish TEXT NOT NULL,
            complete INTEGER NOT NULL,
            private INTEGER NOT NULL,
            undone INTEGER NOT NULL,
            detail TEXT NOT NULL
        )
        """
    )
    database.execute("CREATE INDEX turns_conversation ON turns (conversation, number)")


def _index_words(database: sqlite3.Connection) -> None:
    """Version 2: an index of the words (`shammah.history.search`) and whether it is true."""
    database.execute("CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
    if search.available(database):
        search.build(database)
    else:
        search.mark(database, search.STALE)


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_keep_turns, _index_words)


def version_of(database: sqlite3.Connection) -> int:
    """The version of the file; 0 for an empty one."""
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def migrate(database: sqlite3.Connection) -> None:
    """Bring the file to the present version, in one transaction.

    Raises:
        NewerVersionError: the file is left as it is.
        sqlite3.Error: the file is left as it was.
    """
    if version_of(database) == len(MIGRATIONS):
        return
    database.execute("BEGIN IMMEDIATE")
    try:
        version = version_of(database)  # another frontend may have been faster
        if version > len(MIGRATIONS):
            raise NewerVersionError("it was written by a newer Shammah")
        for number, step in enumerate(MIGRATIONS[version:], version + 1):
            step(database)
            database.execute(
                "INSERT INTO migrations VALUES (?, ?, ?)", (number, time.time(), __version__)
            )
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        database.execute("COMMIT")
    except BaseException:
        database.execute("ROLLBACK")
        raise
