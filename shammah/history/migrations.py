"""The form of ``history.db``, version by version.

Each function takes the file from the version before it to its own (`shammah.storage.sqlite`).
"""

from __future__ import annotations

import sqlite3

from shammah.history import search
from shammah.storage.sqlite import Step


def _keep_turns(database: sqlite3.Connection) -> None:
    """Version 1: conversations and their turns.

    AUTOINCREMENT: the number of a conversation that was removed means no other one later.
    """
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
    search.build(database)


MIGRATIONS: tuple[Step, ...] = (_keep_turns, _index_words)
