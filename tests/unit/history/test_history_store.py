"""The turns on disk: what is written is read, and whatever is wrong with the file is said."""

from __future__ import annotations

import fcntl
import hashlib
import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shammah.bus.messages import Provenance, Timings, Usage
from shammah.chat.conversation import Turn
from shammah.errors import ShammahError
from shammah.history import search
from shammah.history import store as store_module
from shammah.history.migrations import MIGRATIONS
from shammah.history.record import END_MARK, MARK, StoredConversation
from shammah.history.store import FOUND, KIND, OLDER, SUMMARIES, TURNS, Store
from shammah.storage.sqlite import nothing
from tests.fakes.sandbox import Sandbox
from tests.fakes.stored import stored_turn

BY = Provenance("inference", "small", "abc", "native", "cpu", "bfloat16", fallback=True)
NEW = StoredConversation(0, "Be brief.", True)


def turn(
    key: str, question: str = "What are tides?", answer: str = "The moon.", **facts: object
) -> Turn:
    usual = {"private": True, "usage": Usage(10, 20, 5, 0.25)}
    timings = Timings(0.1, 0.2, 0.3, 4.0, 5.0)
    return stored_turn(
        key, 1000.5, question, answer, **{"by": BY, "timings": timings, **usual, **facts}
    )


@pytest.fixture
def path(sandbox: Sandbox) -> Path:
    return sandbox.shammah_home / "history.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store(path, busy_s=0.1)
    yield opened
    opened.close()


def read(store: Store, number: int) -> StoredConversation:
    kept = store.read(number)
    assert kept is not None
    return kept


def found(store: Store, text: str) -> list[str]:
    return [hit.turn.key for hit in store.search(text, 10)]


class TestTurns:
    def test_are_read_as_they_were_written(self, store: Store, path: Path) -> None:
        first = turn("a")
        second = replace(turn("b", by=None, finish="timeout", usage=Usage()), at=1001.5)
        number = store.add(first, NEW)
        assert store.add(second, replace(NEW, number=number)) == number
        other = Store(path)
        assert read(other, number) == StoredConversation(
            number, "Be brief.", True, 1000.5, (first, second)
        )
        other.close()

    def test_are_kept_once(self, store: Store) -> None:
        number = store.add(turn("a"), NEW)
        assert store.add(turn("a"), NEW) == number
        assert [summary.turns for summary in store.summaries(-1)] == [1]

    def test_take_the_place_of_their_earlier_state(self, store: Store) -> None:
        asked = turn("a", answer="", finish="left")
        number = store.add(asked, NEW)
        assert found(store, "tides") == ["a"]
        answered = replace(turn("a", answer="The moon."), at=1002.5)
        assert store.add(answered, NEW) == number
        assert read(store, number).turns == (answered,)
        assert (found(store, "moon"), found(store, "tides")) == (["a"], ["a"])
        store.add(replace(answered, answer="Gravity.", undone=True), NEW)
        assert (found(store, "moon"), found(store, "gravity")) == ([], ["a"])
        assert [(one.turns, one.latest) for one in store.summaries(-1)] == [(0, 1002.5)]

    def test_that_are_undone_stay_and_are_marked(self, store: Store) -> None:
        number = store.add(turn("a"), NEW)
        store.add(turn("b"), StoredConversation(number))
        for _ in range(2):
            store.undo("b")
        kept = read(store, number)
        assert [one.undone for one in kept.turns] == [False, True]
        assert [one.key for one in kept.present] == ["a"]
        assert store.summaries(1)[0].turns == 1
        store.undo("unknown")

    def test_of_a_conversation_that_was_removed_begin_another(self, store: Store) -> None:
        number = store.add(turn("a"), NEW)
        store.remove([number])
        assert store.add(turn("b"), replace(NEW, number=number)) == number + 1

    @pytest.mark.parametrize("text", ["\udcff raw byte", "a\0b", "\ud83d", "☃" * 3])
    def test_can_hold_any_text(self, store: Store, text: str) -> None:
        number = store.add(turn("a", text, text), StoredConversation(0, text))
        stored = text.encode("utf-8", "replace").decode()
        assert read(store, number).turns[0].answer == stored


def test_conversations_are_listed_by_their_last_turn(store: Store) -> None:
    one = store.add(replace(turn("a", "one\nline"), at=1.0), NEW)
    two = store.add(replace(turn("b", "x" * 100), at=2.0), NEW)
    assert [summary.number for summary in store.summaries(10)] == [two, one]
    store.add(replace(turn("c", "three"), at=3.0), StoredConversation(one))
    latest, other = store.summaries(10)
    assert (latest.number, latest.turns, latest.title) == (one, 2, "one line")
    assert (latest.started, latest.latest) == (1.0, 3.0)
    assert other.title == "x" * 71 + "…"
    assert (store.newest(), len(store.summaries(1))) == (one, 1)
    assert store.older(3.0) == [two]


def test_the_keys_of_all_turns_undone_ones_too(store: Store) -> None:
    numbers = [store.add(turn(name), NEW) for name in "ab"]
    kept = replace(NEW, number=numbers[0])
    store.add(turn("c"), kept)
    store.undo("a")
    assert store.keys(numbers[:1]) == ["a", "c"]
    assert store.keys(numbers) == ["a", "c", "b"]


def test_private_turns_are_told_with_their_answers(store: Store) -> None:
    number = store.add(turn("a", "Mine?", "Yes."), NEW)
    store.add(turn("b", "Anyone's?", "Yes.", private=False), StoredConversation(number))
    assert store.private_turns() == [("Mine?", "Yes.")]


def test_all_numbers_in_order(store: Store) -> None:
    numbers = [store.add(turn(str(number)), NEW) for number in range(5)]
    assert store.numbers() == numbers


class TestSearch:
    def test_finds_words_that_begin_so_whatever_their_accents(self, store: Store) -> None:
        store.add(turn("a", "Zürich at night", "trams"), NEW)
        store.add(turn("b", "tides", "the tidesman of zurich"), NEW)
        assert found(store, "zurich") == ["a", "b"] or found(store, "zurich") == ["b", "a"]
        assert found(store, "tidesm ZÜR") == ["b"]
        assert found(store, '"of zurich"') == ["b"]
        assert found(store, '"zurich of"') == []
        (hit,) = store.search("trams", 10)
        assert hit.snippet == f"{MARK}trams{END_MARK}"

    @pytest.mark.parametrize(
        ("text", "searched"),
        [
            (
                "今天天气很好,我们去公园。",
                ["天气", "公园", "天", "今天 公园", "很好,我"],
            ),
            ("高速な全文検索を行う", ["検索", "全文検索", "行う"]),
            ("데이터베이스를 만든다", ["베이스", "데이터"]),
            ("วันนี้อากาศดีมาก", ["อากาศ", "วันนี้", "ดี"]),
            ("Der Wasserdampfkessel", ["dampf", "DAMPF", "kessel", "wasser", '"der wasser"']),
            ("Donaudämpfe", ["dämpf", "dampf", "DÄMPF"]),
            ("snake_case_name", ["case", "name"]),
            ("Überschallflugzeug", ["schallflug", "uberschall"]),
        ],
    )
    def test_finds_what_stands_within_a_word(
        self, store: Store, text: str, searched: list[str]
    ) -> None:
        store.add(turn("a", text), NEW)
        store.add(turn("b", "other", "nothing of it"), NEW)
        for one in searched:
            assert found(store, one) == ["a"], one
        assert found(store, "天地") == []
        assert found(store, "dampfer") == []

    def test_shows_where_it_stands_in_a_text_without_blanks(self, store: Store) -> None:
        store.add(turn("a", "很" * 300 + "公园" + "好" * 300), NEW)
        (hit,) = store.search("公园", 10)
        assert f"很{MARK}公园{END_MARK}好" in hit.snippet
        assert len(hit.snippet) < 200

    def test_finds_one_of_very_many_words(self, store: Store) -> None:
        for number in range(3):
            many = " ".join(f"x{number}part{word}" for word in range(search.MOST_WORDS))
            store.add(turn(str(number), many), NEW)
        assert len(found(store, "part")) >= 1
        assert found(store, "2part7") == ["2"]

    def test_finds_it_in_a_file_of_before(self, store: Store, path: Path) -> None:
        """The index is as it was, so there is nothing to migrate."""
        store.add(turn("a", "天气很好"), NEW)
        store.close()
        database = sqlite3.connect(path)
        assert not database.execute("SELECT 1 FROM words WHERE words MATCH '\"气\"*'").fetchall()
        database.close()
        again = Store(path)
        assert found(again, "气") == ["a"]
        again.close()

    @pytest.mark.parametrize(
        "text", ['"', "(", "a AND", "NEAR(", "*", "col:", "-x", "tides)", '"tides', "^", "a\0b"]
    )
    def test_takes_whatever_people_type(self, store: Store, text: str) -> None:
        store.add(turn("a", "tides col a x b"), NEW)
        if search.split_terms(text):
            assert found(store, text) in ([], ["a"])
        else:
            with pytest.raises(ShammahError, match="no word"):
                found(store, text)

    def test_takes_the_language_of_fts5_where_that_is_asked_for(self, store: Store) -> None:
        store.add(turn("a", "moon", "cheese"), NEW)
        store.add(turn("b", "moon", "sun"), NEW)
        hits = store.search("question: moon NOT sun", 10, raw=True)
        assert [hit.turn.key for hit in hits] == ["a"]
        with pytest.raises(ShammahError, match="FTS5 cannot read"):
            store.search("moon AND", 10, raw=True)

    def test_reads_everything_for_a_script_without_blanks(self, store: Store) -> None:
        store.add(turn("a", "100%的潮汐_", "很" * 90 + "月亮" + "很" * 90), NEW)
        assert found(store, "100%的") == ["a"]
        assert found(store, "100_的") == []
        (hit,) = store.search("月亮", 10)
        assert f"很{MARK}月亮{END_MARK}很" in hit.snippet
        assert len(hit.snippet) < 200

    def test_needs_fts5_and_says_so(
        self, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a new file and on one that is there, which stays as it is."""
        store.add(turn("a"), NEW)
        store.close()
        before = path.read_bytes()
        monkeypatch.setattr(sqlite3, "connect", connect_without_fts5)
        for file in (path, path.with_name("new.db")):
            without = Store(file)
            with pytest.raises(ShammahError, match="needs SQLite with FTS5") as refusal:
                without.newest()
            assert refusal.value.code == "history_unusable"
            assert 'set history = "off"' in refusal.value.hint
            without.close()
        assert path.read_bytes() == before

    def test_finds_what_was_written_without_fts5(self, store: Store, path: Path) -> None:
        """As an earlier Shammah did, which left the index to the next one that has it."""
        store.add(turn("a", "walrus"), NEW)
        store.close()
        edit(path, "UPDATE facts SET value = 'stale'")
        edit(path, "DELETE FROM words_data WHERE id > 10")
        edit(path, "DELETE FROM words_idx")
        assert found(store, "walrus") == ["a"]

    def test_mends_an_index_that_is_damaged(self, store: Store, path: Path) -> None:
        store.add(turn("a", "walrus"), NEW)
        database = sqlite3.connect(path)
        database.execute("DELETE FROM words_data WHERE id > 10")
        database.commit()
        database.close()
        store.close()
        store = Store(path)
        assert found(store, "walrus") == ["a"]
        store.add(turn("b", "walrus"), NEW)
        assert found(store, "walrus") == ["a", "b"]
        store.close()


class TestRemoving:
    def test_leaves_the_text_in_no_file(self, store: Store, path: Path) -> None:
        """Nor its words in the index, which shortens those that begin as the one before."""
        tokens = [hashlib.md5(b"%d" % number).hexdigest() for number in range(60)]
        numbers = {}
        for number, token in enumerate(tokens):
            text = f"{token} " * 50
            numbers[number] = store.add(turn(str(number), text, text), StoredConversation(0, text))
        store.close()
        assert all(token[4:].encode() in path.read_bytes() for token in tokens)
        store = Store(path)
        other = Store(path)
        other.summaries(1)  # another terminal, which has it open
        gone = [number for number in range(60) if number % 3]
        assert store.remove([numbers[number] for number in gone])
        left = b"".join(file.read_bytes() for file in path.parent.glob("history.db*"))
        for number, token in enumerate(tokens):
            assert (token[4:].encode() in left) == (number not in gone)
        assert found(other, tokens[0]) == ["0"]
        other.close()
        store.close()

    def test_says_so_when_a_reader_keeps_the_log(self, store: Store, path: Path) -> None:
        number = store.add(turn("a"), NEW)
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM turns").fetchone()
        assert not store.remove([number])
        reader.close()
        assert store.remove([])
        assert b"moon" not in path.read_bytes()


class TestTheFile:
    def test_can_be_read_by_its_owner_alone(self, store: Store, path: Path) -> None:
        store.add(turn("a"), NEW)
        names = set()
        for file in path.parent.glob("history.db*"):
            names.add(file.name)
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        assert names >= {"history.db", "history.db-wal"}

    def test_of_version_1_is_brought_up_to_date_with_all_that_is_in_it(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            first = replace(KIND, migrations=MIGRATIONS[:1], prepare=nothing)
            patch.setattr(store_module, "KIND", first)
            patch.setattr(search, "add", lambda connection, number: None)
            old = Store(path)
            number = old.add(turn("a", "walrus"), NEW)
            old.add(turn("b", "carpenter"), StoredConversation(number))
            old.close()
            assert tables(path).isdisjoint({"facts", "words"})
        store = Store(path)
        assert read(store, number).turns == (turn("a", "walrus"), turn("b", "carpenter"))
        assert found(store, "walrus") == ["a"]
        store.close()
        database = sqlite3.connect(path)
        versions = database.execute("SELECT version FROM migrations").fetchall()
        assert versions == [(number,) for number in range(1, len(MIGRATIONS) + 1)]
        database.close()

    def test_that_fails_to_migrate_is_as_it_was(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Store(path).open().close()

        def break_off(connection: sqlite3.Connection) -> None:
            connection.execute("DROP TABLE turns")
            raise sqlite3.OperationalError("planted")

        broken = replace(KIND, migrations=(*MIGRATIONS, break_off))
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "KIND", broken)
            with pytest.raises(ShammahError, match="planted"):
                Store(path).open()
        store = Store(path)
        store.add(turn("a"), NEW)
        store.close()

    def test_of_a_newer_version_is_left_alone(self, store: Store, path: Path) -> None:
        store.add(turn("a"), NEW)
        store.close()
        database = sqlite3.connect(path)
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
        database.close()
        before = path.read_bytes()
        with pytest.raises(
            ShammahError, match="written by a newer Shammah, and was left unchanged"
        ):
            Store(path).open()
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        "content", [b"not a database, " * 100, b"SQLite format 3\0" + b"\xa5" * 4000]
    )
    def test_that_is_damaged_is_set_aside_and_told_once(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        told: list[str] = []
        store = Store(path, told.append)
        number = store.add(turn("a"), NEW)
        assert store.read(number)
        store.close()
        (aside,) = path.parent.glob("history.db.damaged-*")
        assert aside.read_bytes() == content
        assert len(told) == 1
        assert str(aside) in told[0]

    def test_that_another_frontend_has_set_aside_is_not_set_aside_again(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both find the damage, and the other one is faster."""
        path.write_bytes(b"not a database, " * 100)
        told: list[str] = []
        faster, slower = Store(path, told.append), Store(path, told.append)
        lock = fcntl.flock

        def come_second(descriptor: int, operation: int) -> None:
            monkeypatch.setattr(fcntl, "flock", lock)
            assert faster.add(turn("a"), NEW) == 1
            lock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", come_second)
        assert slower.newest() == 1
        assert len(told) == 1
        assert len(list(path.parent.glob("history.db.damaged-*"))) == 1
        faster.close()
        slower.close()

    def test_that_was_deleted_is_made_again(self, path: Path) -> None:
        store = Store(path, print)
        store.add(turn("a"), NEW)
        for file in path.parent.glob("history.db*"):
            file.unlink()
        store.add(turn("b"), NEW)
        assert [one.key for one in read(store, 1).turns] == ["b"]
        store.close()

    def test_that_cannot_be_is_refused(self, path: Path) -> None:
        path.mkdir()
        with pytest.raises(ShammahError) as refusal:
            Store(path).open()
        assert refusal.value.code == "history_unusable"

    def test_that_is_locked_is_refused_for_now(self, store: Store, path: Path) -> None:
        store.open()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ShammahError, match="locked"):
            store.add(turn("a"), NEW)
        other.close()
        store.add(turn("a"), NEW)

    def test_with_a_row_that_none_of_ours_has_written_is_refused(
        self, store: Store, path: Path
    ) -> None:
        number = store.add(turn("a"), NEW)
        edit(path, "UPDATE turns SET detail = '[1]'")
        with pytest.raises(ShammahError) as refusal:
            store.read(number)
        assert refusal.value.code == "history_unusable"

    @pytest.mark.parametrize("value", ["'now'", "x'00'", "9e999", "-1e300"])
    @pytest.mark.parametrize("column", ["started", "latest"])
    def test_with_a_time_that_is_none_is_refused(
        self, store: Store, path: Path, column: str, value: str
    ) -> None:
        store.add(turn("a"), NEW)
        edit(path, f"UPDATE conversations SET {column} = {value}")
        with pytest.raises(ShammahError, match="not a time"):
            store.summaries(1)

    def test_that_has_lost_bytes_of_a_text_is_read_with_the_rest_of_it(
        self, store: Store, path: Path
    ) -> None:
        number = store.add(turn("a"), NEW)
        edit(path, "UPDATE turns SET answer = CAST(x'546865fffe206d6f6f6e' AS TEXT)")
        assert read(store, number).turns[0].answer == "The\ufffd\ufffd moon"
        assert found(store, "tides") == ["a"]

    def test_with_bytes_for_a_text_can_be_searched(self, store: Store, path: Path) -> None:
        store.add(turn("a"), NEW)
        edit(path, "UPDATE turns SET question = x'fffe00'")
        assert found(store, "moon") == ["a"]


CONNECT = sqlite3.connect


def connect_without_fts5(*args: Any, **options: Any) -> sqlite3.Connection:
    """What a Python gives whose SQLite was built without it."""
    connection = CONNECT(*args, **options)

    def refuse(_action: int, table: str | None, *_rest: str | None) -> int:
        return sqlite3.SQLITE_IGNORE if table == "pragma_module_list" else sqlite3.SQLITE_OK

    connection.set_authorizer(refuse)
    return connection


def edit(path: Path, statement: str) -> None:
    database = sqlite3.connect(path)
    database.execute(statement)
    database.commit()
    database.close()


def tables(path: Path) -> set[str]:
    database = sqlite3.connect(path)
    names = {str(row[0]) for row in database.execute("SELECT name FROM sqlite_master")}
    database.close()
    return names


@pytest.mark.parametrize(
    ("query", "values"),
    [
        (SUMMARIES, (20,)),
        (TURNS, (1,)),
        (OLDER, (1.0,)),
        (FOUND, ('"a"*', 20)),
        ("SELECT conversation FROM turns WHERE key = ?", ("a",)),
        ("UPDATE turns SET undone = 1 WHERE key = ? AND undone = 0", ("a",)),
    ],
)
def test_no_question_is_answered_by_reading_every_row(
    store: Store, path: Path, query: str, values: tuple[object, ...]
) -> None:
    store.open()
    database = sqlite3.connect(path)
    plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {query}", values)]
    database.close()
    for step in plan:
        reads_all = step.startswith("SCAN") and " USING " not in step and "VIRTUAL" not in step
        assert not reads_all, plan
        if "TEMP B-TREE" in step:
            assert query is FOUND  # by rank, of what was found
