"""A file on its way, on a disk where the process may be killed at any moment.

``<etag>.part`` holds the bytes at their final places, with holes. ``<etag>.journal`` says how
many bytes of each segment are there; a count is written after its bytes, so a kill loses only
what had not been written. After a power failure a count may survive bytes that did not: these
are holes, which the file system can tell; and nothing counts as right before its hash does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workers.listing import RemoteFile

_HEADER = struct.Struct("<8sQQ")
_COUNT = struct.Struct("<Q")
_MAGIC = b"shammah1"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
_READ_BYTES = 1024**2


@dataclass(slots=True)
class Segment:
    """Bytes ``begin`` to ``end`` of the file; the first ``held`` of them are there."""

    index: int
    begin: int
    end: int
    held: int = 0
    claimed: bool = False

    @property
    def position(self) -> int:
        """Where the first missing byte belongs."""
        return self.begin + self.held

    @property
    def complete(self) -> bool:
        return self.position == self.end


class Part:
    """One unfinished file. Several threads may write, each to its own segment.

    Args:
        directory: where it is kept.
        file: what it will become.
        segment_bytes: for a new part; one that is there keeps its own.
    """

    def __init__(self, directory: Path, file: RemoteFile, segment_bytes: int) -> None:
        self.path, self._journal_path = part_paths(directory, file)
        self._file = file
        self._lock = threading.Lock()
        self._hash_lock = threading.Lock()
        directory.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            opened.callback(os.close, self._fd)
            self._journal = os.open(
                self._journal_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666
            )
            opened.callback(os.close, self._journal)
            found = _read_journal(os.pread(self._journal, os.fstat(self._journal).st_size, 0), file)
            self.segments = found or _segments(file.size, segment_bytes)
            if found:
                self._forget_holes()
            self._segment_bytes = self.segments[0].end if self.segments else segment_bytes
            self._write_journal()
            self._opened = opened.pop_all()
        self.inherited = self.held > 0
        self._start_hash()

    @property
    def held(self) -> int:
        """Bytes that are there."""
        return sum(segment.held for segment in self.segments)

    @property
    def complete(self) -> bool:
        return all(segment.complete for segment in self.segments)

    def write(self, offset: int, data: bytes) -> int:
        """Put bytes of the file where they belong; those that are there already stay.

        A segment can only be continued: a gap is refused. What lies behind the end of the file
        is ignored.

        Returns:
            How many bytes were new.

        Raises:
            OSError: the disk is full, for instance. What was counted before is safe.
        """
        view = memoryview(data)[: max(0, self._file.size - offset)]
        added = 0
        while view:
            segment = self.segments[offset // self._segment_bytes]
            here = view[: segment.end - offset]
            added += self._write_segment(segment, offset, here)
            offset += len(here)
            view = view[len(here) :]
        return added

    def _write_segment(self, segment: Segment, offset: int, data: memoryview) -> int:
        begin = segment.position
        end = offset + len(data)
        if offset > begin:
            raise ValueError(f"a gap from {begin} to {offset}")
        position = begin
        while position < end:
            position += os.pwrite(self._fd, data[position - offset :], position)
        with self._lock:  # a stream of the whole file may overtake this segment's own one
            added = end - segment.position
            if added <= 0:
                return 0
            segment.held += added
            place = _HEADER.size + _COUNT.size * segment.index
            os.pwrite(self._journal, _COUNT.pack(segment.held), place)
        return added

    def hash_complete(
        self, check: Callable[[], None] = lambda: None, *, wait: bool = False
    ) -> None:
        """Hash the complete segments that follow what is hashed.

        Args:
            check: called now and then, may raise.
            wait: if another thread is at it, take over when it has done; otherwise leave it.
        """
        if not self._hash_lock.acquire(blocking=wait):
            return
        try:
            while self._hashed < len(self.segments) and self.segments[self._hashed].complete:
                segment = self.segments[self._hashed]
                hash_range(self._fd, segment.begin, segment.end, self._digest.update, check)
                self._hashed += 1
        finally:
            self._hash_lock.release()

    def hexdigest(self, check: Callable[[], None]) -> str:
        """The hash of the complete file."""
        self.hash_complete(check, wait=True)
        return self._digest.hexdigest()

    def restart(self) -> None:
        """Forget every byte. No other thread may be at work on it."""
        os.ftruncate(self._fd, 0)
        for segment in self.segments:
            segment.held = 0
        self._write_journal()
        self.inherited = False
        self._start_hash()

    def move_to(self, target: Path) -> None:
        """Make it ``target``, in one step. The part is closed afterwards."""
        os.replace(self.path, target)
        self._journal_path.unlink(missing_ok=True)
        self.close()

    def delete(self) -> None:
        """Remove it from the disk."""
        self.close()
        self.path.unlink(missing_ok=True)
        self._journal_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Keep it for another time."""
        self._opened.close()

    def _start_hash(self) -> None:
        self._digest = self._file.digest()
        self._hashed = 0

    def _write_journal(self) -> None:
        header = _HEADER.pack(_MAGIC, self._file.size, self._segment_bytes)
        counts = b"".join(_COUNT.pack(segment.held) for segment in self.segments)
        os.ftruncate(self._journal, _HEADER.size + len(counts))
        os.pwrite(self._journal, header + counts, 0)

    def _forget_holes(self) -> None:
        for segment in self.segments:
            if segment.held:
                hole = _first_hole(self._fd, segment.begin)
                segment.held = max(0, min(segment.position, hole) - segment.begin)


def part_paths(directory: Path, file: RemoteFile) -> tuple[Path, Path]:
    """The part and its journal."""
    return directory / f"{file.etag}.part", directory / f"{file.etag}.journal"


def held_bytes(directory: Path, file: RemoteFile) -> int:
    """How much of ``file`` an unfinished download has left behind, by its journal."""
    part, journal = part_paths(directory, file)
    try:
        segments = _read_journal(journal.read_bytes(), file)
        return min(sum(segment.held for segment in segments or ()), part.stat().st_size)
    except OSError:
        return 0


def hash_range(
    fd: int,
    begin: int,
    end: int,
    update: Callable[[bytes], None],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Feed bytes of an open file to a hash. ``check`` is called now and then, and may raise.

    Raises:
        OSError: the file is shorter (``EIO``), or cannot be read.
    """
    while begin < end:
        check()
        data = os.pread(fd, min(_READ_BYTES, end - begin), begin)
        if not data:
            raise OSError(errno.EIO, "the file has become shorter")
        update(data)
        begin += len(data)


def _segments(size: int, segment_bytes: int) -> list[Segment]:
    begins = range(0, size, segment_bytes)
    return [
        Segment(index, begin, min(begin + segment_bytes, size))
        for index, begin in enumerate(begins)
    ]


def _read_journal(raw: bytes, file: RemoteFile) -> list[Segment] | None:
    """``None``: there is no journal that belongs to this file."""
    if len(raw) < _HEADER.size:
        return None
    magic, size, segment_bytes = _HEADER.unpack_from(raw)
    if magic != _MAGIC or size != file.size or not segment_bytes:
        return None
    segments = _segments(size, segment_bytes)
    if len(raw) != _HEADER.size + _COUNT.size * len(segments):
        return None
    for segment in segments:
        (segment.held,) = _COUNT.unpack_from(raw, _HEADER.size + _COUNT.size * segment.index)
        if segment.position > segment.end:
            return None
    return segments


def _first_hole(fd: int, offset: int) -> int:
    """The first byte from ``offset`` on that was never written; at the latest, the end."""
    try:
        return os.lseek(fd, offset, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:  # the file ends before
            return offset
        return os.fstat(fd).st_size
