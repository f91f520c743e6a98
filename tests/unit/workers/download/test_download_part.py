"""Unfinished files: what survives a kill, a power failure and a full disk."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.download.part import Part, held_bytes, part_paths
from workers.listing import RemoteFile

SEGMENT = 1000


def no_check() -> None:
    """Nobody wants an end."""


def remote(content: bytes) -> RemoteFile:
    return RemoteFile("model.safetensors", len(content), hashlib.sha256(content).hexdigest(), None)


def content_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def test_segments_in_any_order_give_the_right_hash(tmp_path: Path) -> None:
    content = content_of(4500)
    file = remote(content)
    part = Part(tmp_path, file, SEGMENT)
    order = [3, 0, 4, 2, 1]
    for index in order:
        segment = part.segments[index]
        part.write(segment.begin, content[segment.begin : segment.end])
        part.hash_complete(no_check)
    assert part.complete
    assert part.hexdigest(no_check) == file.etag
    target = tmp_path / "blob"
    part.move_to(target)
    assert target.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blob"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 700)), max_size=40))
def test_what_is_counted_is_there_when_it_is_opened_again(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, int]]
) -> None:
    directory = tmp_path_factory.mktemp("part")
    content = content_of(4500)
    part = Part(directory, remote(content), SEGMENT)
    for index, count in writes:
        segment = part.segments[index]
        begin = segment.position
        added = part.write(begin, content[begin : min(begin + count, segment.end)])
        assert added == segment.position - begin
    counts = [segment.held for segment in part.segments]
    part.close()  # as the kernel does when the process is killed
    assert held_bytes(directory, remote(content)) == sum(counts)
    again = Part(directory, remote(content), 700)  # the old one keeps its segments
    assert [segment.held for segment in again.segments] == counts
    assert again.inherited == any(counts)
    again.write(0, content)  # a server that ignores ranges
    assert again.complete
    assert again.hexdigest(no_check) == remote(content).etag
    again.delete()
    assert list(directory.iterdir()) == []


def test_bytes_that_are_there_are_not_written_again(tmp_path: Path) -> None:
    content = content_of(3000)
    part = Part(tmp_path, remote(content), SEGMENT)
    assert part.write(1000, content[1000:1500]) == 500
    assert part.write(0, content[:1200]) == 1000
    assert part.write(0, content) == 1500
    assert part.write(2500, content[2500:] + b"behind the end") == 0
    part.close()


def test_a_gap_is_refused(tmp_path: Path) -> None:
    part = Part(tmp_path, remote(content_of(3000)), SEGMENT)
    with pytest.raises(ValueError, match="gap"):
        part.write(10, b"x")
    part.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:10],
        lambda raw: raw[:-1],
        lambda raw: b"other ma" + raw[8:],
        lambda raw: raw[:24] + (2**40).to_bytes(8, "little") + raw[32:],
        lambda raw: b"",
    ],
)
def test_a_journal_that_makes_no_sense_counts_for_nothing(tmp_path: Path, damage: object) -> None:
    content = content_of(3000)
    part = Part(tmp_path, remote(content), SEGMENT)
    part.write(0, content[:1500])
    part.close()
    journal = part_paths(tmp_path, remote(content))[1]
    journal.write_bytes(damage(journal.read_bytes()))  # type: ignore[operator]
    again = Part(tmp_path, remote(content), SEGMENT)
    assert again.held == 0
    assert not again.inherited
    again.close()


def test_counted_bytes_that_never_reached_the_disk_are_missing(tmp_path: Path) -> None:
    """After a power failure the journal may be ahead of the data: these are holes."""
    content = content_of(3 * 65536)
    file = remote(content)
    part = Part(tmp_path, file, 65536)
    part.write(0, content)
    part.close()
    path, _ = part_paths(tmp_path, file)
    with path.open("r+b") as lost:
        lost.truncate(65536)  # the first segment
        lost.truncate(2 * 65536)  # the second is a hole, the third not even that
    again = Part(tmp_path, file, 65536)
    assert [segment.held for segment in again.segments] == [65536, 0, 0]
    again.close()


def test_restart_forgets_everything(tmp_path: Path) -> None:
    content = content_of(2500)
    part = Part(tmp_path, remote(content), SEGMENT)
    part.write(0, b"\0" * 2500)
    assert part.hexdigest(no_check) != remote(content).etag
    part.restart()
    assert part.held == 0
    part.write(0, content)
    assert part.hexdigest(no_check) == remote(content).etag
    part.close()


def test_a_full_disk_counts_only_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = content_of(3000)
    part = Part(tmp_path, remote(content), SEGMENT)
    part.write(0, content[:300])
    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset >= 500:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data[: 500 - offset], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        part.write(300, content[300:900])
    monkeypatch.undo()
    part.close()
    again = Part(tmp_path, remote(content), SEGMENT)
    assert again.held == 300
    again.write(0, content)
    assert again.hexdigest(no_check) == remote(content).etag
    again.close()


def test_threads_write_their_own_segments(tmp_path: Path) -> None:
    content = content_of(64_000)
    file = remote(content)
    part = Part(tmp_path, file, 4000)

    def write(index: int) -> None:
        segment = part.segments[index]
        for begin in range(segment.begin, segment.end, 100):
            part.write(begin, content[begin : begin + 100])
        part.hash_complete(no_check)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(16)]
    threads.append(threading.Thread(target=part.write, args=(0, content)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert part.hexdigest(no_check) == file.etag
    part.close()


def test_an_empty_file_is_complete(tmp_path: Path) -> None:
    part = Part(tmp_path, remote(b""), SEGMENT)
    assert part.complete
    assert part.hexdigest(no_check) == remote(b"").etag
    part.close()
