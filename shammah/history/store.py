"""The turns on disk: ``history.db`` in the home, shared by all frontends.

SQLite in WAL mode: readers never wait, writers wait for each other up to `BUSY_S`. A turn is
one transaction, so that SIGKILL at any moment loses at most the unfinished one. Not for the
thread that answers: each call may wait.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from shammah.chat.record import (
    BUSY_S,
    END_MARK,
    MARK,
    Hit,
    Kept,
    Record,
    Summary,
    read_detail,
    title_of,
    write_detail,
)
from shammah.errors import ExitCode, ShammahError
from shammah.history import search
from shammah.history.database import DamagedError, Database

CHUNK = 500
LATEST_S = 2.0**35
"""A thousand years from now; no calendar has a date for what is far beyond."""

_FIELDS = (
    *("key", "at", "question", "answer", "target", "model", "reason", "finish"),
    *("complete", "private", "undone", "detail"),
)
_COLUMNS = ", ".join(f"turns.{name}" for name in _FIELDS)
ADD = (
    f"INSERT INTO turns ({', '.join(_FIELDS)}, conversation) "
    f"VALUES ({', '.join('?' * len(_FIELDS))}, ?)"
)
CHANGE = f"UPDATE turns SET {', '.join(f'{name} = ?' for name in _FIELDS)} WHERE number = ?"
SUMMARIES = (
    "SELECT number, started, latest, turns, title, "
    "EXISTS (SELECT 1 FROM turns WHERE conversation = conversations.number AND private) "
    "FROM conversations "
    "ORDER BY latest DESC, number DESC LIMIT ?"
)
TURNS = f"SELECT {_COLUMNS} FROM turns WHERE conversation = ? ORDER BY number"
OLDER = "SELECT number FROM conversations WHERE latest < ? ORDER BY latest, number"
FOLLOWING = "SELECT number FROM conversations WHERE number > ? ORDER BY number LIMIT ?"
FOUND = (
    f"SELECT conversation, {_COLUMNS}, "
    f"snippet(words, -1, '{MARK}', '{END_MARK}', '…', {search.SNIPPET_WORDS}) "
    "FROM words JOIN turns ON turns.number = words.rowid "
    "WHERE words MATCH ? ORDER BY rank LIMIT ?"
)

Result = TypeVar("Result")


class Store:
    """One connection. Use it from one thread, and close it. Raises as `Database` does."""

    def __init__(self, path: Path, busy_s: float = BUSY_S) -> None:
        self.database = Database(path, busy_s)

    def close(self) -> None:
        self.database.close()

    # --- writing --------------------------------------------------------------------------

    def add(self, record: Record, conversation: Kept) -> int:
        """Keep a turn of ``conversation``, which is begun if it has no number (or was removed
        since); returns its number. A turn that is known takes the place of its earlier state."""
        return self._mending(lambda: self._add(record, conversation))

    def _add(self, record: Record, conversation: Kept) -> int:
        with self.database.transaction("BEGIN IMMEDIATE") as connection:
            known = connection.execute(
                "SELECT conversation, number FROM turns WHERE key = ?", (record.key,)
            ).fetchone()
            if known:
                number, turn = int(known[0]), int(known[1])
                search.forget(connection, turn)
                connection.execute(CHANGE, (*_row(record), turn))
            else:
                number = _begin(connection, record, conversation)
                added = connection.execute(ADD, (*_row(record), number))
                turn = int(added.lastrowid or 0)
            connection.execute(
                "UPDATE conversations SET latest = ?, turns = "
                "(SELECT count(*) FROM turns WHERE conversation = ? AND NOT undone) "
                "WHERE number = ?",
                (record.at, number, number),
            )
            search.add(connection, turn)
            return number

    def undo(self, key: str) -> None:
        """Mark a turn as taken out of its conversation."""
        with self.database.transaction("BEGIN IMMEDIATE") as connection:
            undone = connection.execute(
                "UPDATE turns SET undone = 1 WHERE key = ? AND undone = 0", (key,)
            )
            if undone.rowcount:
                connection.execute(
                    "UPDATE conversations SET turns = turns - 1 WHERE number = "
                    "(SELECT conversation FROM turns WHERE key = ?)",
                    (key,),
                )

    def remove(self, numbers: list[int]) -> bool:
        """Remove conversations, so that their text is in no file any more.

        Returns:
            False if another process was reading just then, so that the text stays in
            ``history.db-wal`` until the last one that has the file open closes it.
        """
        with self.database.transaction("BEGIN IMMEDIATE") as connection:
            connection.executemany(
                "DELETE FROM conversations WHERE number = ?", [(number,) for number in numbers]
            )
            search.forget_removed(connection)
        return self.database.shrink()

    # --- reading --------------------------------------------------------------------------

    def summaries(self, limit: int) -> list[Summary]:
        """The latest conversations, newest first; a ``limit`` of -1 has all."""
        with self.database.transaction() as connection:
            rows = connection.execute(SUMMARIES, (limit,)).fetchall()
            return [_summary(row) for row in rows]

    def count(self) -> int:
        """How many conversations there are."""
        with self.database.transaction() as connection:
            return int(connection.execute("SELECT count(*) FROM conversations").fetchone()[0])

    def newest(self) -> int:
        """The number of the conversation that was used last; 0: there is none."""
        latest = self.summaries(1)
        return latest[0].number if latest else 0

    def read(self, number: int) -> Kept | None:
        """A whole conversation; ``None``: there is none of this number."""
        with self.database.transaction() as connection:
            row = connection.execute(
                "SELECT system, system_private, started FROM conversations WHERE number = ?",
                (number,),
            ).fetchone()
            if row is None:
                return None
            records = tuple(_record(turn) for turn in connection.execute(TURNS, (number,)))
            return Kept(number, str(row[0]), bool(row[1]), _time(row[2]), records)

    def numbers(self) -> Iterator[int]:
        """All conversations, oldest first, a few at a time."""
        last = 0
        while True:
            with self.database.transaction() as connection:
                rows = connection.execute(FOLLOWING, (last, CHUNK)).fetchall()
            yield from (int(row[0]) for row in rows)
            if len(rows) < CHUNK:
                return
            last = int(rows[-1][0])

    def older(self, when: float) -> list[int]:
        """The conversations that were last used before ``when`` (seconds since 1970)."""
        with self.database.transaction() as connection:
            return [int(row[0]) for row in connection.execute(OLDER, (when,))]

    def search(self, text: str, limit: int, *, raw: bool = False) -> list[Hit]:
        """Turns that have every word of ``text``, perhaps within another, the best first. Without
        FTS5, or in a script without blanks, every turn is read, and the newest come first.

        Args:
            raw: ``text`` is a query in FTS5's own language.

        Raises:
            ShammahError: ``history_query``: FTS5 cannot read it, or there is no word in it.
        """
        terms = search.split_terms(text)
        query = text.replace("\0", " ").strip() if raw else ""
        if not (query or terms):
            raise _bad_query("There is no word to search for.")
        if self.database.indexed and (raw or not any(map(search.is_unspaced, terms))):
            return self._mending(lambda: self._search(query, terms, limit))
        if raw:
            raise _bad_query("This Python's SQLite has no FTS5, so --raw means nothing to it.")
        return self._search_everything(terms, limit)

    def _search(self, raw: str, terms: list[str], limit: int) -> list[Hit]:
        with self.database.transaction() as connection:
            query = raw or search.as_query(terms, partial(search.find_words, connection))
            try:
                rows = connection.execute(FOUND, (query, limit)).fetchall()
            except sqlite3.OperationalError as error:
                if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_ERROR:
                    raise
                raise _bad_query(
                    f"FTS5 cannot read {query!r:.60} ({error}). Without --raw any words will do."
                ) from error
            return [Hit(int(row[0]), _record(row[1:-1]), str(row[-1])) for row in rows]

    def _search_everything(self, terms: list[str], limit: int) -> list[Hit]:
        condition = r"(question LIKE ? ESCAPE '\' OR answer LIKE ? ESCAPE '\')"
        values = [search.as_pattern(term) for term in terms for _ in range(2)]
        with self.database.transaction() as connection:
            rows = connection.execute(
                f"SELECT conversation, {_COLUMNS} FROM turns "
                f"WHERE {' AND '.join([condition] * len(terms))} ORDER BY number DESC LIMIT ?",
                (*values, limit),
            ).fetchall()
        records = [(int(row[0]), _record(row[1:])) for row in rows]
        return [
            Hit(number, one, search.cut_snippet(f"{one.question} {one.answer}", terms))
            for number, one in records
        ]

    def _mending(self, work: Callable[[], Result]) -> Result:
        """What ``work`` returns. If the index of words is damaged and nothing else, it is made
        anew from the turns."""
        try:
            return work()
        except DamagedError:
            if not self.database.indexed:
                raise
            self.database.build_index()
            return work()


def _begin(connection: sqlite3.Connection, record: Record, conversation: Kept) -> int:
    """The number of ``conversation``, which need not be on the disk yet."""
    known = connection.execute(
        "SELECT number FROM conversations WHERE number = ?", (conversation.number,)
    ).fetchone()
    if known:
        return conversation.number
    title, system = title_of(_text(record.question)), _text(conversation.system)
    begun = connection.execute(
        "INSERT INTO conversations (started, latest, turns, title, system, system_private) "
        "VALUES (?, ?, 0, ?, ?, ?)",
        (record.at, record.at, title, system, conversation.system_private),
    )
    return int(begun.lastrowid or 0)


def _text(text: str) -> str:
    """``text`` as SQLite can have it: what was no UTF-8 in a pipe cannot be kept as it was."""
    return text.encode("utf-8", "replace").decode()


def _row(record: Record) -> tuple[object, ...]:
    return (
        *(record.key, record.at, _text(record.question), _text(record.answer), record.target),
        *(_text(record.model), record.reason, record.finish, record.complete, record.private),
        *(record.undone, _text(write_detail(record))),
    )


def _record(row: tuple[object, ...]) -> Record:
    key, at, question, answer, target, model, reason, finish, complete, private, undone, rest = row
    document = json.loads(str(rest))
    if not isinstance(document, dict):
        raise TypeError("the detail of a turn is no table")
    return Record(
        *(str(key), _time(at), str(question), str(answer), str(target), str(model), str(reason)),
        *(str(finish), bool(complete), bool(private), bool(undone)),
        *read_detail(document),
    )


def _summary(row: tuple[object, ...]) -> Summary:
    number, started, latest, turns, title, private = row
    if not (isinstance(number, int) and isinstance(turns, int)):
        raise TypeError("a count is none")
    return Summary(number, _time(started), _time(latest), turns, str(title), bool(private))


def _time(value: object) -> float:
    """Seconds since 1970 that a calendar knows."""
    if not isinstance(value, float) or not abs(value) < LATEST_S:
        raise TypeError("a time is none")
    return value


def _bad_query(why: str) -> ShammahError:
    return ShammahError("history_query", why, exit_code=ExitCode.USAGE)
