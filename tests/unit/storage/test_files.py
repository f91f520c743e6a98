"""What is written appears whole or not at all, for its owner alone, whoever else is at it."""

from __future__ import annotations

import os
import resource
import stat
import threading
from pathlib import Path

import pytest

from shammah.storage.files import append_line, new_directory, new_file, replace_file
from tests.fakes.sandbox import Sandbox


@pytest.fixture
def path(sandbox: Sandbox) -> Path:
    return sandbox.shammah_home / "deep" / "file"


def names(directory: Path) -> list[str]:
    return sorted(one.name for one in directory.iterdir())


class TestAFile:
    def test_is_written_for_its_owner_alone(self, path: Path) -> None:
        replace_file(path, b"one")
        replace_file(path, b"two")
        assert path.read_bytes() == b"two"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert names(path.parent) == ["file"]

    def test_is_as_it_was_where_the_new_one_fails(self, path: Path) -> None:
        replace_file(path, b"one")
        with pytest.raises(IsADirectoryError), new_file(path) as draft:
            draft.parent.write_bytes(b"two")
        assert path.read_bytes() == b"one"
        assert names(path.parent) == ["file"]

    def test_that_a_link_leads_to_is_written_through_it(self, path: Path) -> None:
        replace_file(path, b"one")
        link = path.with_name("link")
        link.symlink_to(path)
        replace_file(link, b"two")
        assert link.is_symlink()
        assert path.read_bytes() == b"two"

    def test_may_have_the_longest_name(self, path: Path) -> None:
        longest = path.with_name("x" * 255)
        replace_file(longest, b"one")
        assert longest.read_bytes() == b"one"

    def test_reaches_the_disk_before_its_name(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[str] = []
        sync, replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda fd: (done.append("sync"), sync(fd)))
        monkeypatch.setattr(os, "replace", lambda *to: (done.append("name"), replace(*to)))
        replace_file(path, b"one")
        replace_file(path, b"two", sync=False)
        assert done == ["sync", "name", "name"]

    def test_of_the_persons_own_is_written_in_no_directory_of_ours(self, path: Path) -> None:
        with pytest.raises(FileNotFoundError), new_file(path):
            pass
        assert not path.parent.exists()


class TestADirectory:
    def test_appears_whole(self, path: Path) -> None:
        with new_directory(path) as draft:
            (draft / "a").write_text("one")
            assert not path.exists()
        assert names(path) == ["a"]
        assert names(path.parent) == ["file"]

    def test_does_not_appear_where_it_fails(self, path: Path) -> None:
        with pytest.raises(KeyError), new_directory(path):
            raise KeyError
        assert names(path.parent) == []

    def test_takes_nobodys_place(self, path: Path) -> None:
        replace_file(path / "mine", b"one")
        with pytest.raises(OSError, match="not empty"), new_directory(path) as draft:
            (draft / "theirs").touch()
        assert names(path) == ["mine"]


class TestALine:
    def test_stands_behind_one_that_a_crash_has_torn(self, path: Path) -> None:
        append_line(path, b"one\n")
        with path.open("ab") as file:
            file.write(b"to")
        append_line(path, b"three\n")
        assert path.read_bytes() == b"one\nto\nthree\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_is_whole_whoever_else_appends(self, path: Path) -> None:
        lines = [f"{number}".encode() * 20_000 + b"\n" for number in range(8)]
        threads = [
            threading.Thread(target=lambda line=line: [append_line(path, line) for _ in range(20)])
            for line in lines
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(lines * 20)

    def test_is_not_there_where_the_disk_has_no_room_for_all_of_it(self, path: Path) -> None:
        append_line(path, b"one\n")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        try:
            with pytest.raises(OSError, match=r"No space|too large"):
                append_line(path, b"another line\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == b"one\n"

    def test_goes_through_no_link(self, path: Path) -> None:
        replace_file(path, b"theirs\n")
        link = path.with_name("link")
        link.symlink_to(path)
        with pytest.raises(OSError, match="symbolic"):
            append_line(link, b"mine\n")
        assert path.read_bytes() == b"theirs\n"

    def test_goes_into_no_pipe(self, path: Path) -> None:
        """Where nobody would ever read it; nor is a reader waited for."""
        path.parent.mkdir()
        os.mkfifo(path)
        with pytest.raises(OSError, match="a pipe, not a file"):
            append_line(path, b"mine\n")
