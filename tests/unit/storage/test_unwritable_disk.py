"""A disk that is full or cannot be written: what is there is read, the rest is said."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shammah.chat.conversation import Conversation, Turn
from shammah.errors import ShammahError
from shammah.history import search
from shammah.history import store as history_store
from shammah.history.migrations import MIGRATIONS
from shammah.history.record import StoredConversation
from shammah.history.recorder import Recorder
from shammah.history.store import Store
from shammah.router import store as router_store
from shammah.storage import disk
from shammah.storage.disk import describe_remedy, open_log
from shammah.storage.sqlite import nothing
from tests.fakes.sandbox import Sandbox
from tests.unit.history.test_history_store import turn
from tests.unit.router.test_router_store import outcome

NEW = StoredConversation(0)


@pytest.fixture
def path(sandbox: Sandbox) -> Path:
    return sandbox.shammah_home / "history.db"


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """As on a disk that was mounted so; root may write whatever the modes say."""
    whole = os.open

    def refuse(name: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & (os.O_CREAT | os.O_RDWR | os.O_WRONLY) and path.parent in Path(name).parents:
            raise OSError(errno.EROFS, "Read-only file system", str(name))
        return whole(name, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)


@contextlib.contextmanager
def full() -> Iterator[None]:
    """No file can grow; Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def keep(path: Path, *turns: Turn) -> None:
    store, number = Store(path), 0
    for one in turns:
        number = store.add(one, StoredConversation(number))
    store.close()


def questions(path: Path) -> list[str]:
    store = Store(path)
    try:
        found = [hit.turn.question for hit in store.search("moon", 10)]
        assert len(store.summaries(10)) == 1
        kept = store.read(store.newest())
        assert kept is not None
        assert sorted(one.question for one in kept.turns) == sorted(found)
        return sorted(found)
    finally:
        store.close()


class TestTheHistory:
    def test_is_read_on_a_disk_that_is_read_only(
        self, path: Path, request: pytest.FixtureRequest
    ) -> None:
        keep(path, turn("a", "One"), turn("b", "Two"))
        before = path.read_bytes()
        request.getfixturevalue("read_only")
        assert questions(path) == ["One", "Two"]
        assert path.read_bytes() == before
        assert [file.name for file in path.parent.glob("history*")] == ["history.db"]

    def test_is_read_on_a_disk_that_is_full(self, path: Path) -> None:
        keep(path, turn("a", "One"), turn("b", "Two"))
        with full():
            assert questions(path) == ["One", "Two"]

    def test_is_read_with_what_is_in_its_log_alone(
        self, path: Path, request: pytest.FixtureRequest
    ) -> None:
        """As after a kill; or while somebody else, who can, writes."""
        keep(path, turn("a", "One"))
        writer = Store(path)
        writer.add(turn("b", "Two"), StoredConversation(writer.newest()))
        request.getfixturevalue("read_only")
        assert questions(path) == ["One", "Two"]
        writer.close()

    def test_of_an_older_version_is_read_too(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
    ) -> None:
        with monkeypatch.context() as patch:
            first = replace(history_store.KIND, migrations=MIGRATIONS[:1], prepare=nothing)
            patch.setattr(history_store, "KIND", first)
            patch.setattr(search, "add", lambda connection, number: None)
            keep(path, turn("a", "One"))
        before = path.read_bytes()
        request.getfixturevalue("read_only")
        assert questions(path) == ["One"]
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        "write",
        [
            lambda store: store.add(turn("b"), NEW),
            lambda store: store.undo("a"),
            lambda store: store.remove([1]),
        ],
    )
    def test_takes_nothing_that_would_be_lost(
        self, path: Path, write: Any, request: pytest.FixtureRequest
    ) -> None:
        keep(path, turn("a"))
        request.getfixturevalue("read_only")
        store = Store(path)
        with pytest.raises(ShammahError) as refusal:
            write(store)
        assert refusal.value.code == "history_unusable"
        assert "(Read-only file system)" in refusal.value.message
        store.close()

    @pytest.mark.parametrize("content", [b"not a database, " * 100, b""])
    def test_that_cannot_be_read_either_stays_where_it_is(
        self, path: Path, content: bytes, request: pytest.FixtureRequest
    ) -> None:
        path.write_bytes(content)
        request.getfixturevalue("read_only")
        told: list[str] = []
        store = Store(path, told.append)
        with contextlib.suppress(ShammahError):
            assert store.summaries(10) == []
        assert path.read_bytes() == content
        assert not told

    def test_is_written_again_when_the_disk_has_room(self, path: Path) -> None:
        keep(path, turn("a", "One"))
        store = Store(path)
        with full():
            assert store.newest() == 1
            with pytest.raises(ShammahError):
                store.add(turn("b", "Two"), StoredConversation(1))
        store.add(turn("b", "Two"), StoredConversation(1))
        store.close()
        assert questions(path) == ["One", "Two"]

    def test_says_once_what_cannot_be_kept_and_what_helps(
        self, path: Path, request: pytest.FixtureRequest
    ) -> None:
        request.getfixturevalue("read_only")
        complaints: list[str] = []
        recorder = Recorder(path, enabled=True, report=complaints.append)
        for key in "ab":
            recorder.keep(Turn("One", key=key), Conversation())
        recorder.close()
        [said] = complaints
        assert "cannot be used (Read-only file system)" in said
        assert "SHAMMAH_HOME" in said


class TestTheRouter:
    @pytest.mark.usefixtures("read_only")
    def test_does_not_advise_to_delete_what_only_cannot_be_written(self, path: Path) -> None:
        with pytest.raises(ShammahError) as refusal:
            router_store.Store(path.with_name("router.db")).read()
        assert refusal.value.hint == "Answers are not affected."

    def test_is_read_on_a_disk_that_is_read_only(
        self, path: Path, request: pytest.FixtureRequest
    ) -> None:
        place = path.with_name("router.db")
        store = router_store.Store(place)
        store.add(outcome("a"))
        store.close()
        request.getfixturevalue("read_only")
        again = router_store.Store(place)
        assert again.read().answers == 1
        with pytest.raises(ShammahError, match="Read-only"):
            again.add(outcome("b"))

    def test_does_not_advise_to_delete_what_is_in_use(self, path: Path) -> None:
        store = router_store.Store(path)
        store.read()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        impatient = router_store.Store(path, busy_s=0.01)
        with pytest.raises(ShammahError) as refusal:
            impatient.relabel("t", router_store.Label.GOOD)
        assert refusal.value.hint == "Answers are not affected."
        for one in (store, impatient, other):
            one.close()


class TestTheAdvice:
    @pytest.mark.parametrize(
        ("flags", "free", "says"),
        [
            (os.ST_RDONLY, 10**6, "That disk is read-only"),
            (0, 10, "That disk is full"),
            (0, 10**6, "Check the permissions of"),
        ],
    )
    def test_fits_the_disk(
        self, flags: int, free: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer = os.statvfs_result((4096, 4096, 0, 0, free, 0, 0, 0, flags, 255))
        monkeypatch.setattr(disk.os, "statvfs", lambda place: answer)
        said = describe_remedy(tmp_path / "not" / "there")
        assert said.startswith(says)
        assert "SHAMMAH_HOME" in said

    def test_a_log_that_cannot_be_written_is_done_without(self, tmp_path: Path) -> None:
        (tmp_path / "logs").write_text("a file")
        descriptor = open_log(tmp_path / "logs" / "inference.log")
        assert os.write(descriptor, b"lost") == 4
        os.close(descriptor)
