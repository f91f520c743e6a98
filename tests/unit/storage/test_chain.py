"""A chain of lines: what was done to it is seen, and called by its name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shammah.storage.chain import Head, append_link, head_path, read_head, read_links, sha256
from shammah.storage.chain_damage import Damage, Report, inspect
from shammah.storage.files import append_line

OLD = b'{"type": "request", "id": "old"}\n'
TORN = b'{"type": "request", "id": "to'


def chain(path: Path, count: int, begin: int = 0) -> list[bytes]:
    for number in range(begin, begin + count):
        append_link(path, {"type": "request", "text": f"ä{number}"})
    return path.read_bytes().splitlines(keepends=True)


def report(path: Path, noted: str = "") -> Report:
    return inspect(path.read_bytes() if path.exists() else b"", read_head(path), noted)


def damage(path: Path, noted: str = "") -> list[tuple[str, int, int]]:
    return [(one.kind, one.line, one.count) for one in report(path, noted).damage]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "egress.jsonl"


def test_each_line_has_the_hash_of_the_one_before(path: Path) -> None:
    lines = chain(path, 3)
    documents = [json.loads(line) for line in lines]
    assert [document["n"] for document in documents] == [1, 2, 3]
    hashes = [sha256(b""), sha256(lines[0]), sha256(lines[1])]
    assert [document["previous"] for document in documents] == hashes
    assert read_head(path) == Head(3, sha256(lines[2]))
    assert (report(path).damage, report(path).links, report(path).proven) == ((), 3, 1)


def test_lines_of_before_are_taken_in_and_no_longer_changed_unseen(path: Path) -> None:
    for _ in range(2000):
        append_line(path, OLD)
    assert report(path).damage == ()
    chain(path, 2)
    found = report(path)
    assert (found.damage, found.links, len(found.unchained)) == ((), 2, 2000)
    path.write_bytes(path.read_bytes().replace(b"old", b"new", 1))
    assert damage(path) == [("changed", 1, 2000)]
    assert report(path).proven == 2001


def test_lines_that_an_older_version_adds_are_taken_in(path: Path) -> None:
    """A home that went back to an older version for a while."""
    chain(path, 2)
    append_line(path, OLD)
    append_line(path, OLD)
    assert (report(path).damage, report(path).unchained) == ((), (3, 4))
    chain(path, 2)
    assert (report(path).damage, report(path).unchained) == ((), (3, 4))
    path.write_bytes(path.read_bytes().replace(b"old", b"new", 1))
    assert damage(path) == [("changed", 2, 3)]


@pytest.mark.parametrize("left", [TORN, b"\0" * 500, b"\xff{"])
def test_what_a_crash_tore_is_no_change(path: Path, left: bytes) -> None:
    chain(path, 2)
    with open(path, "ab") as file:
        file.write(left)
    assert (report(path).damage, report(path).torn) == ((), (3,))
    chain(path, 2)
    assert (report(path).damage, report(path).torn) == ((), (3,))


def test_a_line_that_lost_its_end_alone_goes_on(path: Path) -> None:
    chain(path, 2)
    path.write_bytes(path.read_bytes()[:-1])
    assert report(path).damage == ()
    chain(path, 1)
    assert (report(path).damage, report(path).links) == ((), 3)


def test_a_writer_that_was_killed_before_the_head_leaves_no_damage(
    path: Path,
) -> None:
    chain(path, 2)
    head = head_path(path).read_bytes()
    chain(path, 1)
    head_path(path).write_bytes(head)
    assert (report(path).damage, report(path).behind) == ((), 1)
    chain(path, 1)
    assert (report(path).damage, report(path).links, report(path).behind) == ((), 4, 0)


def test_a_full_disk_harms_neither_the_chain_nor_the_head(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain(path, 2)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[: len(data) // 2]))
        with pytest.raises(OSError, match="No space"):
            chain(path, 1)
    assert (report(path).damage, report(path).torn) == ((), ())
    chain(path, 1)
    assert (report(path).damage, report(path).links) == ((), 3)


def test_a_file_that_was_rotated_goes_on_and_is_told_from_a_changed_one(path: Path) -> None:
    chain(path, 3)
    ended = read_head(path)
    assert ended is not None
    rotated = path.rename(path.with_suffix(".jsonl.1"))
    assert damage(path) == [("not_here", 0, 3)]
    assert damage(path, ended.sha256) == []
    lines = chain(path, 2)
    assert json.loads(lines[0])["previous"] == ended.sha256
    assert damage(path) == [("not_here", 0, 3)]
    assert damage(path, ended.sha256[:16]) == []
    whole = rotated.read_bytes() + path.read_bytes()
    assert inspect(whole, read_head(path)).damage == ()


@pytest.mark.parametrize("spoilt", [None, b"", b"{", b"[" * 4000, b'{"n": 0, "sha256": "x"}'])
def test_without_a_head_a_cut_cannot_be_seen_and_is_not_denied(
    path: Path, spoilt: bytes | None
) -> None:
    chain(path, 3)
    head_path(path).unlink()
    if spoilt is not None:
        head_path(path).write_bytes(spoilt)
    assert damage(path) == [("no_head", 3, 0)]
    chain(path, 1)
    assert report(path).damage == ()


# --- what somebody did ----------------------------------------------------------------------


def test_an_end_that_was_cut_off_stays_visible_when_more_is_written(path: Path) -> None:
    lines = chain(path, 5)
    path.write_bytes(b"".join(lines[:3]))
    assert damage(path) == [("removed", 3, 2)]
    assert report(path).proven == 0
    chain(path, 2)
    assert damage(path) == [("removed", 3, 2)]
    assert report(path).proven == 4


def test_a_last_line_that_was_changed_stays_visible_when_more_is_written(path: Path) -> None:
    lines = chain(path, 3)
    path.write_bytes(b"".join([*lines[:2], lines[2].replace(b"request", b"outcome")]))
    assert damage(path) == [("changed", 3, 1)]
    chain(path, 2)
    assert damage(path) == [("changed", 3, 1)]


def test_a_chain_that_was_written_anew_does_not_lead_to_the_head(path: Path) -> None:
    chain(path, 4)
    head = head_path(path).read_bytes()
    path.unlink()
    head_path(path).unlink()
    chain(path, 6, begin=100)
    head_path(path).write_bytes(head)
    assert damage(path) == [("changed", 4, 1)]
    assert report(path).proven == 0


def test_whoever_rewrites_the_head_too_meets_the_hash_that_was_noted(path: Path) -> None:
    chain(path, 4)
    noted = report(path).last
    assert noted is not None
    chain(path, 2)
    assert damage(path, noted.sha256) == []
    lines = path.read_bytes().splitlines(keepends=True)
    path.unlink()
    head_path(path).unlink()
    for line in lines:
        document = json.loads(line)
        append_link(path, {"type": "request", "text": document["text"].replace("ä1", "b")})
    assert report(path).damage == ()
    assert damage(path, noted.sha256) == [("not_found", 0, 0)]


COUNT = 12
Act = Callable[[list[bytes], int, int, Random], Damage]


@cache
def whole_chain() -> tuple[bytes, ...]:
    with TemporaryDirectory() as directory:
        return tuple(chain(Path(directory, "ledger.jsonl"), COUNT))


def removed(lines: list[bytes], at: int, many: int, random: Random) -> Damage:
    many = min(many, COUNT - at)
    del lines[at : at + many]
    return Damage("not_here", 0, many) if at == 0 else Damage("removed", at, many)


def changed(lines: list[bytes], at: int, many: int, random: Random) -> Damage:
    """One bit of it, wherever, or all of it."""
    line = bytearray(lines[at][:-1])
    where = random.randrange(len(line))
    line[where] ^= 1 << random.randrange(8)
    if many == 3:
        line = bytearray(b"gone")
    if b"\n" in line:
        line[where] = ord("?")
    lines[at] = bytes(line) + b"\n"
    return Damage("changed", at + 1)


def inserted(lines: list[bytes], at: int, many: int, random: Random) -> Damage:
    """A copy of another line, a line of before, or one that is made to fit."""
    [one] = read_links(lines[at])
    forged = {"type": "request", "text": "x", "n": one.n, "previous": one.previous}
    choices = [random.choice(lines), OLD, json.dumps(forged).encode() + b"\n"]
    lines.insert(at, choices[many - 1])
    return Damage("inserted", at + 1)


def moved(lines: list[bytes], at: int, many: int, random: Random) -> Damage:
    to = random.choice([place for place in range(COUNT) if abs(place - at) > 1])
    lines.insert(to, lines.pop(at))
    return Damage("moved", to + 1)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([removed, changed, inserted, moved]),
    st.integers(0, COUNT - 1),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_what_was_done_is_named(act: Act, at: int, many: int, random: Random) -> None:
    whole = whole_chain()
    lines = list(whole)
    expected = act(lines, at, many, random)
    found = inspect(b"".join(lines), Head(COUNT, sha256(whole[-1]))).damage
    if act is inserted and lines[at] in whole:  # which of two that are the same cannot be known
        same = [number for number, line in enumerate(lines, 1) if line == lines[at]]
        assert found in [(Damage("inserted", number),) for number in same]
    else:
        assert found == (expected,)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, COUNT - 2), min_size=1, max_size=6), st.randoms(use_true_random=False)
)
def test_however_much_is_done_it_is_seen(places: list[int], random: Random) -> None:
    whole = whole_chain()
    lines = list(whole)
    for at in places:
        if list(read_links(b"".join(lines[at : at + 1]))):
            random.choice([removed, changed, inserted, moved])(lines, at, 1, random)
    found = inspect(b"".join(lines), Head(COUNT, sha256(whole[-1])))
    assert bool(found.damage) == (lines != list(whole))
