"""The outcomes on disk: ``router.db`` in the home, shared by all frontends.

No text of a question or an answer is in it.
"""

from __future__ import annotations

import functools
import json
import sqlite3
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from shammah.router.classic import CategoryCount, ClassicState
from shammah.router.route import Arm, Category, Reason, Target
from shammah.router.statistics import Label, Outcome, Snapshot, learn_classic, summarize
from shammah.storage.sqlite import Database, Kind, Step

KEPT = 2000
"""Of so many answers the outcomes are kept: people and models change."""
BUSY_S = 2.0

_ARM = tuple(one.name for one in fields(Arm))
_OTHER = tuple(one.name for one in fields(Outcome) if one.name != "arm")
_TEXTS = ("turn", "reason", "finish", "label")


def _keep_outcomes(database: sqlite3.Connection) -> None:
    """Version 1: how answers ended, and what the classic policy has learnt."""
    database.execute(
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
        )
        """
    )
    database.execute(
        "CREATE TABLE classic (id INTEGER PRIMARY KEY CHECK (id = 1), state TEXT NOT NULL)"
    )


MIGRATIONS: tuple[Step, ...] = (_keep_outcomes,)
KIND = Kind(
    "statistics",
    "The router's record of answers",
    MIGRATIONS,
    consequence=": what is learnt now is forgotten later",
    hint="Answers are not affected.",
)


class Store:
    """The file, for one process. Use it from one thread, and close it.

    Args:
        path: of ``router.db``.
        report: called with a sentence for people when a damaged file was put aside.
        busy_s: how long a writer waits for another one, in seconds.

    Raises:
        ShammahError: from every method, as `shammah.storage.sqlite.Database` does.
    """

    def __init__(
        self, path: Path, report: Callable[[str], None] = lambda _: None, busy_s: float = BUSY_S
    ) -> None:
        self._database = Database(path, KIND, busy_s, report)

    def read(self) -> Snapshot:
        """What all frontends have recorded."""

        def read(database: sqlite3.Connection) -> Snapshot:
            rows = database.execute(
                f"SELECT {', '.join(_ARM + _OTHER)} FROM outcomes ORDER BY number DESC LIMIT ?",
                (KEPT,),
            ).fetchall()
            return summarize(map(_outcome, reversed(rows)), _read_classic(database))

        return self._database.run(read)

    def add(self, outcome: Outcome) -> None:
        """Record an answer, and what the classic policy learns from it."""

        def add(database: sqlite3.Connection) -> None:
            row = asdict(outcome)
            row |= row.pop("arm")
            added = database.execute(
                f"INSERT OR IGNORE INTO outcomes ({', '.join(row)}) VALUES (:{', :'.join(row)})",
                row,
            )
            if not added.rowcount:
                return
            database.execute(
                "DELETE FROM outcomes WHERE number <= (SELECT max(number) FROM outcomes) - ?",
                (KEPT,),
            )
            classic = learn_classic(_read_classic(database), outcome)
            database.execute("REPLACE INTO classic VALUES (1, ?)", (write_classic(classic),))

        self._database.run(add, write=True)

    def relabel(self, turn: str, label: Label) -> None:
        """What the person has said of an answer since; never weaker than what is known."""

        def relabel(database: sqlite3.Connection) -> None:
            row = database.execute("SELECT label FROM outcomes WHERE turn = ?", (turn,)).fetchone()
            if row is not None and Label(row[0]).weight <= label.weight:
                database.execute("UPDATE outcomes SET label = ? WHERE turn = ?", (label, turn))

        self._database.run(relabel, write=True)

    def close(self) -> None:
        self._database.close()


def _outcome(row: tuple[Any, ...]) -> Outcome:
    arm, values = row[: len(_ARM)], dict(zip(_OTHER, row[len(_ARM) :], strict=True))
    for name, value in values.items():
        if name in _TEXTS:
            values[name] = str(value)
        elif name != "passed" and not isinstance(value, int | float):
            raise TypeError("a number is none")
    values["reason"], values["label"] = Reason(values["reason"]), Label(values["label"])
    values["passed"] = None if values["passed"] is None else bool(values["passed"])
    return Outcome(arm=_arm(*map(str, arm)), **values)


@functools.lru_cache(maxsize=1000)
def _arm(category: str, target: str, *rest: str) -> Arm:
    return Arm(Category(category), Target(target), *rest)


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
