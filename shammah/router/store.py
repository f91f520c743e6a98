"""The outcomes on disk: ``router.db`` in the home, shared by all frontends.

SQLite in WAL mode: readers never wait, writers wait for each other up to `BUSY_S`. Every change
is one transaction, so that SIGKILL at any moment loses at most the answer in hand. No text of a
question or an answer is in it. Not for the thread that answers: each call may wait.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from shammah.errors import ShammahError
from shammah.router.categories import Category
from shammah.router.classic import CategoryCount, ClassicState
from shammah.router.route import Arm, Reason, Target
from shammah.router.statistics import Label, Outcome, Snapshot, learn_classic, summarize

KEPT = 2000
"""Of so many answers the outcomes are kept: people and models change."""
BUSY_S = 2.0

MIGRATIONS = (
    """
    CREATE TABLE outcomes (
        number INTEGER PRIMARY KEY,
        turn TEXT NOT NULL UNIQUE,
        at REAL NOT NULL,
        category TEXT NOT NULL,
        target TEXT NOT NULL,
        model TEXT NOT NULL,
        quantization TEXT NOT NULL,
        adapter TEXT NOT NULL,
        reason TEXT NOT NULL,
        finish TEXT NOT NULL,
        label TEXT NOT NULL,
        passed INTEGER,
        ttft_s REAL NOT NULL,
        tokens_per_second REAL NOT NULL,
        input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        cost REAL NOT NULL
    );
    CREATE TABLE classic (id INTEGER PRIMARY KEY CHECK (id = 1), state TEXT NOT NULL);
    """,
)
"""The step from each schema version to the next; ``PRAGMA user_version`` is the one reached.
Append, never change."""

_NOT_DAMAGED = frozenset(
    {
        *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN),
        *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED),
    }
)

_COLUMNS = (
    "turn, at, category, target, model, quantization, adapter, reason, finish, label, passed, "
    "ttft_s, tokens_per_second, input_tokens, output_tokens, cost"
)


class Store:
    """One connection. Use it from one thread, and close it.

    Raises:
        ShammahError: ``statistics_unusable``, from here and from every method: the file cannot
            be made, read or written, or is of a newer version. It is left as it is.
    """

    def __init__(self, path: Path, busy_s: float = BUSY_S) -> None:
        self._path = path
        self._database: sqlite3.Connection | None = None
        with self._explained():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite would make it readable for everybody; what it makes beside it is like it.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._database = sqlite3.connect(path, timeout=busy_s, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._migrate(self._database)

    def read(self) -> Snapshot:
        """What all frontends have recorded."""
        with self._transaction("BEGIN") as database:
            rows = database.execute(
                f"SELECT {_COLUMNS} FROM outcomes ORDER BY number DESC LIMIT ?", (KEPT,)
            ).fetchall()
            return summarize(map(_outcome, reversed(rows)), _read_classic(database))

    def add(self, outcome: Outcome) -> None:
        """Record an answer, and what the classic policy learns from it."""
        with self._transaction("BEGIN IMMEDIATE") as database:
            marks = ", ".join("?" * len(_row(outcome)))
            added = database.execute(
                f"INSERT OR IGNORE INTO outcomes ({_COLUMNS}) VALUES ({marks})", _row(outcome)
            )
            if not added.rowcount:
                return
            database.execute(
                "DELETE FROM outcomes WHERE number <= (SELECT max(number) FROM outcomes) - ?",
                (KEPT,),
            )
            classic = learn_classic(_read_classic(database), outcome)
            database.execute("REPLACE INTO classic VALUES (1, ?)", (write_classic(classic),))

    def relabel(self, turn: str, label: Label) -> None:
        """What the person has said of an answer since; never weaker than what is known."""
        with self._transaction("BEGIN IMMEDIATE") as database:
            row = database.execute("SELECT label FROM outcomes WHERE turn = ?", (turn,)).fetchone()
            if row is not None and Label(row[0]).weight <= label.weight:
                database.execute("UPDATE outcomes SET label = ? WHERE turn = ?", (label, turn))

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _migrate(self, database: sqlite3.Connection) -> None:
        if _version(database) == len(MIGRATIONS):
            return
        database.execute("BEGIN IMMEDIATE")
        try:
            version = _version(database)  # another frontend may have been faster
            if version > len(MIGRATIONS):
                raise sqlite3.DatabaseError("it was written by a newer Shammah")
            for step in MIGRATIONS[version:]:
                for statement in step.split(";"):
                    database.execute(statement)
            database.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
            database.execute("COMMIT")
        except BaseException:
            database.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._explained():
            if self._database is None:
                raise sqlite3.ProgrammingError("it is closed")
            self._database.execute(begin)
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError, KeyError, TypeError) as error:
            # ValueError and its like: a row that none of ours has written.
            if self._database is not None and not isinstance(error, sqlite3.OperationalError):
                self.close()
            why = error.strerror if isinstance(error, OSError) else error
            raise ShammahError(
                "statistics_unusable",
                f"{self._path} cannot be used ({why}): what is learnt now is forgotten later.",
                f"Answers are not affected. {_remedy(error)}".rstrip(),
            ) from error


def _remedy(error: Exception) -> str:
    """What would help; of a disk the history says it."""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    passing = isinstance(error, OSError) or code in _NOT_DAMAGED
    return "" if passing else "Delete the file to begin again."


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _row(outcome: Outcome) -> tuple[object, ...]:
    arm = outcome.arm
    passed = None if outcome.passed is None else int(outcome.passed)
    return (
        *(outcome.turn, outcome.at, arm.category, arm.target, arm.model, arm.quantization),
        *(arm.adapter, outcome.reason, outcome.finish, outcome.label, passed, outcome.ttft_s),
        *(outcome.tokens_per_second, outcome.input_tokens, outcome.output_tokens, outcome.cost),
    )


def _outcome(row: tuple[object, ...]) -> Outcome:
    turn, at, category, target, model, quantization, adapter, reason, finish, label, *rest = row
    passed, *numbers = rest
    if not isinstance(at, float) or not all(isinstance(one, int | float) for one in numbers):
        raise TypeError("a number is none")
    arm = _arm(str(category), str(target), str(model), str(quantization), str(adapter))
    return Outcome(
        *(str(turn), at, arm, Reason(str(reason)), str(finish), Label(str(label))),
        None if passed is None else bool(passed),
        *numbers,  # type: ignore[arg-type]
    )


@functools.lru_cache(maxsize=1000)
def _arm(category: str, target: str, model: str, quantization: str, adapter: str) -> Arm:
    return Arm(Category(category), Target(target), model, quantization, adapter)


def _read_classic(database: sqlite3.Connection) -> ClassicState:
    row = database.execute("SELECT state FROM classic").fetchone()
    return read_classic(row[0]) if row else ClassicState()


def write_classic(state: ClassicState) -> str:
    """The state as JSON."""
    return json.dumps(asdict(state))


def read_classic(text: str) -> ClassicState:
    """What `write_classic` wrote."""
    document = json.loads(text)
    categories = {
        Category(name): CategoryCount(**count) for name, count in document["categories"].items()
    }
    return ClassicState(**{**document, "categories": categories})
