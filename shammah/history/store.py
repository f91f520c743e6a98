"""The turns on disk: ``history.db`` in the home, shared by all frontends.

A turn is one transaction, so that SIGKILL at any moment loses at most the unfinished one.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from shammah.chat.conversation import Turn
from shammah.errors import ExitCode, ShammahError
from shammah.history import search
from shammah.history.migrations import MIGRATIONS
from shammah.history.record import (
    BUSY_S,
    DETAIL,
    END_MARK,
    FLAGS,
    MARK,
    TEXTS,
    Hit,
    StoredConversation,
    Summary,
    facts_of,
    title_of,
    turn_of,
)
from shammah.storage.sqlite import Database, Kind, nothing

LATEST_S = 2.0**35
"""A thousand years from now; no calendar has a date for what is far beyond."""

_FIELDS = ("key", *TEXTS, *FLAGS, "at", "detail")
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
FOUND = (
    f"SELECT conversation, {_COLUMNS}, "
    f"snippet(words, -1, '{MARK}', '{END_MARK}', '…', {search.SNIPPET_WORDS}) "
    "FROM words JOIN turns ON turns.number = words.rowid "
    "WHERE words MATCH ? ORDER BY rank LIMIT ?"
)

KIND = Kind("history", "The history", MIGRATIONS, prepare=search.prepare, mend=search.build)

Result = TypeVar("Result")
Row = tuple[Any, ...]


class Store:
    """The file, for one process. Use it from one thread, and close it.

    Args:
        path: of ``history.db``.
        report: called with a sentence for people when a damaged file was put aside.
        busy_s: how long a writer waits for another one, in seconds.

    Raises:
        ShammahError: from every method, as `shammah.storage.sqlite.Database` does.
    """

    def __init__(
        self, path: Path, report: Callable[[str], None] = lambda _: None, busy_s: float = BUSY_S
    ) -> None:
        self._database = Database(path, KIND, busy_s, report)
        self.path = path

    def open(self) -> Store:
        """Create the file or bring it up to date, as other calls do when they have to."""
        self._database.run(nothing)
        return self

    def close(self) -> None:
        self._database.close()

    # --- writing --------------------------------------------------------------------------

    def add(self, turn: Turn, conversation: StoredConversation) -> int:
        """Store a turn of ``conversation``, which is created if it has no number or was removed
        since; return its number. A turn that is known replaces its earlier state."""

        def add(connection: sqlite3.Connection) -> int:
            known = connection.execute(
                "SELECT conversation, number FROM turns WHERE key = ?", (turn.key,)
            ).fetchone()
            if known:
                number, row = int(known[0]), int(known[1])
                search.forget(connection, row)
                connection.execute(CHANGE, (*_row(turn), row))
            else:
                number = _begin(connection, turn, conversation)
                row = int(connection.execute(ADD, (*_row(turn), number)).lastrowid or 0)
            connection.execute(
                "UPDATE conversations SET latest = ?, turns = "
                "(SELECT count(*) FROM turns WHERE conversation = ? AND NOT undone) "
                "WHERE number = ?",
                (turn.at, number, number),
            )
            search.add(connection, row)
            return number

        return self._database.run(add, write=True)

    def undo(self, key: str) -> None:
        """Mark a turn as taken out of its conversation."""

        def undo(connection: sqlite3.Connection) -> None:
            undone = connection.execute(
                "UPDATE turns SET undone = 1 WHERE key = ? AND undone = 0", (key,)
            )
            if undone.rowcount:
                connection.execute(
                    "UPDATE conversations SET turns = turns - 1 WHERE number = "
                    "(SELECT conversation FROM turns WHERE key = ?)",
                    (key,),
                )

        self._database.run(undo, write=True)

    def keys(self, numbers: list[int]) -> list[str]:
        """Return the keys of all turns of these conversations."""
        query = "SELECT key FROM turns WHERE conversation = ?"
        return [
            key
            for number in numbers
            for key in self._rows(query, (number,), lambda row: str(row[0]))
        ]

    def remove(self, numbers: list[int]) -> bool:
        """Remove conversations, so that no file has their text any more.

        Returns:
            False if another process was reading, so that the text stays in
            ``history.db-wal`` until the last one that has the file open closes it.
        """

        def remove(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "DELETE FROM conversations WHERE number = ?", [(number,) for number in numbers]
            )
            # FTS5 only crosses out what is deleted; it is built again so that the words are gone.
            search.build(connection)

        self._database.run(remove, write=True)
        return self._database.shrink()

    # --- reading --------------------------------------------------------------------------

    def summaries(self, limit: int) -> list[Summary]:
        """Return the latest conversations, newest first; all with a ``limit`` of -1."""
        return self._rows(SUMMARIES, (limit,), _summary)

    def count(self) -> int:
        """Return the number of conversations."""
        [number] = self._rows("SELECT count(*) FROM conversations", (), _number)
        return number

    def newest(self) -> int:
        """Return the number of the latest conversation, or 0."""
        latest = self.summaries(1)
        return latest[0].number if latest else 0

    def read(self, number: int) -> StoredConversation | None:
        """Return conversation ``number``, or ``None``."""

        def read(connection: sqlite3.Connection) -> StoredConversation | None:
            row = connection.execute(
                "SELECT system, system_private, started FROM conversations WHERE number = ?",
                (number,),
            ).fetchone()
            if row is None:
                return None
            turns = tuple(map(_turn, connection.execute(TURNS, (number,))))
            return StoredConversation(number, str(row[0]), bool(row[1]), _time(row[2]), turns)

        return self._database.run(read)

    def get(self, number: int) -> StoredConversation:
        """Return conversation ``number``.

        Raises:
            ShammahError: ``history_unknown``.
        """
        stored = self.read(number)
        if stored is None:
            what = f"There is no conversation {number}."
            raise ShammahError("history_unknown", what, "To see them all: `shammah history list`.")
        return stored

    def numbers(self) -> list[int]:
        """Return all conversations, oldest first."""
        return self._rows("SELECT number FROM conversations ORDER BY number", (), _number)

    def older(self, when: float) -> list[int]:
        """Return the conversations last used before ``when`` (seconds since 1970)."""
        return self._rows(OLDER, (when,), _number)

    def private_turns(self) -> list[tuple[str, str]]:
        """Return question and answer of every turn that stays on this machine."""
        query = "SELECT question, answer FROM turns WHERE private"
        return self._rows(query, (), lambda row: (str(row[0]), str(row[1])))

    def search(self, text: str, limit: int, *, raw: bool = False) -> list[Hit]:
        """Return turns that have every word of ``text``, perhaps within another, the best first. In
        a script without blanks every turn is read, and the newest are first.

        Args:
            raw: ``text`` is a query in FTS5's own language.

        Raises:
            ShammahError: ``history_query``: FTS5 cannot read it, or it has no word.
        """
        terms = search.split_terms(text)
        query = text.replace("\0", " ").strip() if raw else ""
        if not (query or terms):
            raise _bad_query("There are no words to search for.")
        if not raw and any(map(search.is_unspaced, terms)):
            return self._search_everything(terms, limit)

        def find(connection: sqlite3.Connection) -> list[Hit]:
            asked = query or search.as_query(terms, partial(search.find_words, connection))
            try:
                rows = connection.execute(FOUND, (asked, limit)).fetchall()
            except sqlite3.OperationalError as error:
                if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_ERROR:
                    raise
                raise _bad_query(
                    f"FTS5 cannot read {asked!r:.60} ({error}). Without --raw, any words work."
                ) from error
            return [Hit(int(row[0]), _turn(row[1:-1]), str(row[-1])) for row in rows]

        return self._database.run(find)

    def _search_everything(self, terms: list[str], limit: int) -> list[Hit]:
        condition = r"(question LIKE ? ESCAPE '\' OR answer LIKE ? ESCAPE '\')"
        values = [search.as_pattern(term) for term in terms for _ in range(2)]
        query = (
            f"SELECT conversation, {_COLUMNS} FROM turns "
            f"WHERE {' AND '.join([condition] * len(terms))} ORDER BY number DESC LIMIT ?"
        )
        found = self._rows(query, (*values, limit), lambda row: (_number(row), _turn(row[1:])))
        return [
            Hit(number, one, search.cut_snippet(f"{one.question} {one.answer}", terms))
            for number, one in found
        ]

    def _rows(
        self, query: str, values: tuple[object, ...], read: Callable[[Row], Result]
    ) -> list[Result]:
        return self._database.run(
            lambda connection: [read(row) for row in connection.execute(query, values)]
        )


def _begin(connection: sqlite3.Connection, turn: Turn, conversation: StoredConversation) -> int:
    """Return the number of ``conversation``, which is created if need be."""
    known = connection.execute(
        "SELECT number FROM conversations WHERE number = ?", (conversation.number,)
    ).fetchone()
    if known:
        return conversation.number
    title, system = title_of(_text(turn.question)), _text(conversation.system)
    begun = connection.execute(
        "INSERT INTO conversations (started, latest, turns, title, system, system_private) "
        "VALUES (?, ?, 0, ?, ?, ?)",
        (turn.at, turn.at, title, system, conversation.system_private),
    )
    return int(begun.lastrowid or 0)


def _text(text: str) -> str:
    """Return ``text`` as SQLite can store it, without what was not UTF-8 in a pipe."""
    return text.encode("utf-8", "replace").decode()


def _row(turn: Turn) -> Row:
    facts = facts_of(turn)
    facts["detail"] = json.dumps({name: facts[name] for name in DETAIL}, ensure_ascii=False)
    values = (facts[name] for name in _FIELDS)
    return tuple(_text(one) if isinstance(one, str) else one for one in values)


def _turn(row: Row) -> Turn:
    values = dict(zip(_FIELDS, row, strict=True))
    detail = json.loads(str(values["detail"]))
    if not isinstance(detail, dict):
        raise TypeError("the detail of a turn is not a table")
    texts = {name: str(values[name]) for name in ("key", *TEXTS)}
    flags = {name: bool(values[name]) for name in FLAGS}
    return turn_of({**detail, **texts, **flags, "at": _time(values["at"])})


def _number(row: Row) -> int:
    return int(row[0])


def _summary(row: Row) -> Summary:
    number, started, latest, turns, title, private = row
    times = {"started": _time(started), "latest": _time(latest)}
    return Summary(int(number), turns=int(turns), title=str(title), private=bool(private), **times)


def _time(value: object) -> float:
    """Return seconds since 1970 that a calendar has a date for."""
    if not isinstance(value, float) or not abs(value) < LATEST_S:
        raise TypeError("not a time")
    return value


def _bad_query(why: str) -> ShammahError:
    return ShammahError("history_query", why, exit_code=ExitCode.USAGE)
