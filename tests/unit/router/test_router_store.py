"""The outcomes on disk: what is written is read, and whatever is wrong with the file is said."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shammah.errors import ShammahError
from shammah.router import store as store_module
from shammah.router.classic import ClassicState
from shammah.router.route import Arm, Category, Reason, Target
from shammah.router.statistics import Label, Outcome, learn_classic, summarize
from shammah.router.store import KIND, MIGRATIONS, Store
from tests.fakes.sandbox import Sandbox

HERE = Arm(Category.CODE, Target.LOCAL, "small", "int8", "mine")


def outcome(turn: str, label: Label = Label.TEXT_GOOD, arm: Arm = HERE) -> Outcome:
    return Outcome(turn, 1.0, arm, Reason.USER, "stop", label, True, 0.5, 20.0, 10, 30, 0.01)


@pytest.fixture
def path(sandbox: Sandbox) -> Path:
    return sandbox.shammah_home / "router.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store(path, busy_s=0.1)
    yield opened
    opened.close()


def refused(path: Path, code: str) -> str:
    with pytest.raises(ShammahError) as refusal:
        Store(path, busy_s=0.1).read()
    assert refusal.value.code == code
    assert str(path) in refusal.value.message
    return refusal.value.message


def test_what_is_written_is_read_by_the_next(store: Store, path: Path) -> None:
    written = [outcome("a"), outcome("b", Label.BAD), replace(outcome("c"), passed=None)]
    for one in written:
        store.add(one)
    other = Store(path)
    classic = ClassicState()
    for one in written:
        classic = learn_classic(classic, one)
    assert other.read() == summarize(written, classic)
    other.close()


def test_a_later_label_counts_unless_it_is_weaker(store: Store) -> None:
    store.add(outcome("a", Label.TEXT_GOOD))
    store.relabel("a", Label.BAD)
    assert store.read().tally(HERE).successes == 0
    store.relabel("a", Label.CANCEL)
    assert store.read().tally(HERE).trials == 1.0
    store.relabel("a", Label.GOOD)
    assert store.read().tally(HERE).successes == 1.0
    store.relabel("unknown", Label.GOOD)


def test_the_same_answer_counts_once(store: Store) -> None:
    store.add(outcome("a"))
    store.add(outcome("a"))
    snapshot = store.read()
    assert (snapshot.answers, snapshot.classic.total_queries) == (1, 1)


def test_old_answers_are_forgotten(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "KEPT", 3)
    for number in range(10):
        store.add(outcome(str(number)))
    assert store.read().answers == 3
    assert store.read().classic.total_queries == 10


def test_only_its_owner_can_read_it(store: Store, path: Path) -> None:
    store.add(outcome("a"))
    for file in path.parent.glob("router.db*"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_a_home_that_is_not_there_is_made(sandbox: Sandbox) -> None:
    path = sandbox.root / "new" / "home" / "router.db"
    Store(path).read()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "content", [b"not a database, " * 100, b"SQLite format 3\0" + os.urandom(4000)]
)
def test_a_damaged_file_is_put_aside_and_told_once(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    told: list[str] = []
    store = Store(path, told.append)
    store.add(outcome("a"))
    assert store.read().answers == 1
    store.close()
    (aside,) = path.parent.glob("router.db.damaged-*[0-9]")
    assert aside.read_bytes() == content
    (sentence,) = told
    assert sentence.startswith(
        f"The router's record of answers was damaged. It was moved to {aside}"
    )


def test_a_directory_in_its_place_is_refused(path: Path) -> None:
    path.mkdir()
    refused(path, "statistics_unusable")


def test_a_file_of_a_newer_version_is_refused(store: Store, path: Path) -> None:
    store.read()
    store.close()
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    database.close()
    assert "newer Shammah" in refused(path, "statistics_newer")


def test_a_row_that_none_of_ours_has_written_is_refused(store: Store, path: Path) -> None:
    store.add(outcome("a"))
    database = sqlite3.connect(path)
    database.execute("UPDATE outcomes SET category = 'astrology'")
    database.commit()
    database.close()
    with pytest.raises(ShammahError, match="astrology"):
        store.read()


def test_a_locked_file_is_refused_and_later_taken(store: Store, path: Path) -> None:
    store.read()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(ShammahError, match="locked"):
        store.add(outcome("a"))
    assert store.read().answers == 0  # readers do not wait
    holder.execute("COMMIT")
    holder.close()
    store.add(outcome("a"))
    assert store.read().answers == 1


def test_an_older_file_is_brought_up_to_date(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(outcome("a"))
    store.close()
    add_device = "ALTER TABLE outcomes ADD COLUMN device TEXT NOT NULL DEFAULT ''"
    later = (*MIGRATIONS, lambda database: database.execute(add_device))
    monkeypatch.setattr(store_module, "KIND", replace(KIND, migrations=later))
    newer = Store(path)
    newer.add(outcome("b"))
    assert newer.read().answers == 2
    newer.close()
    monkeypatch.setattr(store_module, "KIND", KIND)
    assert "newer Shammah" in refused(path, "statistics_newer")
