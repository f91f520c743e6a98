"""A file of JSON lines of which each carries the hash of the one before, so that what is changed,
removed, put in or moved later is seen (`chain_damage` says what it was).

The last two fields of a line are ``n``, counted from 1, and ``previous``: the SHA-256 of the bytes
from the beginning of the line before to the beginning of this one, so that of the line before with
its end. Where lines without these fields lie between (written by an earlier version, or torn by
a crash) they are part of it, and so is all that stands before the first.

A chain cannot show that its end was cut off. So the *head*, the number and the hash of the last
line, is kept in a file of its own. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shammah.storage.files import append, open_file, open_to_append

_FIELDS = re.compile(rb', "n": ([1-9][0-9]{0,17}), "previous": "([0-9a-f]{64})"\}\n\Z')
_LONGEST = 120
"""Bytes of the two fields."""
_MOST = 10**18
_HEAD = 128
"""Bytes of a head."""
_REACH = 8192
"""Bytes of a file's end that are read first to find the last line; eight times as many then."""


@dataclass(frozen=True, slots=True)
class Head:
    """The last line: its number, and the SHA-256 of its bytes with their end."""

    n: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Link:
    """A line of the chain, which begins at the byte ``start``."""

    start: int
    text: bytes
    n: int
    previous: str

    @property
    def head(self) -> Head:
        return Head(self.n, sha256(self.text))


def read_link(text: bytes, start: int = 0) -> Link | None:
    """Read one line, with its end; ``None``: it is none of the chain."""
    found = _FIELDS.search(text, max(0, len(text) - _LONGEST))
    return Link(start, text, int(found[1]), found[2].decode()) if found else None


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def head_path(path: Path) -> Path:
    """Where the head of the chain in ``path`` is kept."""
    return path.with_suffix(".head")


def read_head(path: Path) -> Head | None:
    """Read the head of the chain in ``path``; ``None``: there is none, or it is damaged.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with open_file(head_path(path)) as file:
            document = json.loads(file.read(_HEAD))
        n, digest = document["n"], document["sha256"]
        sound = type(n) is int and 0 < n < _MOST and type(digest) is str
        return Head(n, digest) if sound else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None


def append_link(path: Path, document: dict[str, Any]) -> None:
    """Append a line, and wait until the disk has it. Several processes may do so at once.

    The head follows the line: a process that is killed in between leaves one that is behind, which
    differs from an end that was cut off, and which the next line mends.

    Raises:
        OSError: the file is unchanged.
    """
    with open_to_append(path) as descriptor:
        n, previous = _follow(descriptor, read_head(path))
        fields = {**document, "n": n, "previous": previous}
        line = json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        append(descriptor, line)
        os.fsync(descriptor)
        with contextlib.suppress(OSError):
            _write_head(path, Head(n, sha256(line)))


def _write_head(path: Path, head: Head) -> None:
    """In its place, since a worker that is confined may make no file beside it. It is always as
    long, so that it is never half an older one."""
    text = json.dumps(asdict(head)).encode().ljust(_HEAD - 1) + b"\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(head_path(path), flags, 0o600)
    try:
        os.pwrite(descriptor, text, 0)
    finally:
        os.close(descriptor)


def _follow(descriptor: int, head: Head | None) -> tuple[int, str]:
    """The number of the next line, and the hash of what is before it.

    What does not agree with the head was changed by somebody: the next line then follows the head,
    so that the change stays visible.
    """
    n, data = 0, b""
    for data, links in _tails(descriptor):
        known = [link for link in links if head is None or link.n <= head.n]
        n = links[-1].n if links else 0
        if known and (head is None or known[-1].head == head):
            return n + 1, sha256(data[links[-1].start :])
        if known:
            break
    if head is not None:
        return max(n, head.n) + 1, head.sha256
    return 1, sha256(data)


def _tails(descriptor: int) -> Iterator[tuple[bytes, list[Link]]]:
    """The end of a file and the links in it, more and more until it is all."""
    size = os.fstat(descriptor).st_size
    reach = _REACH
    while True:
        begin = max(0, size - reach)
        data = os.pread(descriptor, size - begin, begin)
        if data and not data.endswith(b"\n"):
            data += b"\n"  # `append` will write it
        whole = 0 if begin == 0 else data.find(b"\n") + 1
        yield data, list(read_links(data, whole))
        if begin == 0:
            return
        reach *= 8


def read_links(data: bytes, start: int = 0) -> Iterator[Link]:
    """The lines of the chain in ``data``, whose last line has an end, from ``start`` on."""
    while start < len(data):
        end = data.index(b"\n", start) + 1
        if link := read_link(data[start:end], start):
            yield link
        start = end
