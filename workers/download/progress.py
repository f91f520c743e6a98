"""How far a download is, as snapshots that never go backwards."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from workers.listing import RemoteFile

INTERVAL_S = 0.2
"""Snapshots are sent at most this often, but for the last one, which is sent at once."""

WINDOW_S = 10.0
"""The rate is the average over this long."""


@dataclass(frozen=True, slots=True)
class FileProgress:
    """One file. ``verified``: its hash is right and it is in the cache."""

    path: str
    size: int
    done: int
    verified: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """The whole truth about a download at one moment.

    Attributes:
        model_id: which.
        revision: the commit.
        done: bytes that have arrived, now or earlier. Bytes that must be fetched again stay
            counted, so this never falls.
        verified: bytes of the files whose hash is right; the others are in flight.
        total: bytes of all files.
        rate: bytes per second that arrived lately.
        eta_s: seconds to the end at this rate, those fetched again included; ``None``: nobody
            knows.
        files: each of them.
    """

    model_id: str
    revision: str
    done: int
    verified: int
    total: int
    rate: float
    eta_s: float | None
    files: tuple[FileProgress, ...]


@dataclass(slots=True)
class _Count:
    size: int
    held: int = 0
    shown: int = 0
    verified: bool = False


class Meter:
    """Counts what worker threads report and tells one observer.

    Args:
        model_id: of what.
        revision: the commit.
        files: which belong to it.
        observer: called with snapshots, one at a time, on the threads that report: it must be
            quick. ``None``: nobody watches.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        model_id: str,
        revision: str,
        files: Iterable[RemoteFile],
        observer: Callable[[Progress], None] | None,
        clock: Callable[[], float],
    ) -> None:
        self._model_id = model_id
        self._revision = revision
        self._counts = {file.path: _Count(file.size) for file in files}
        self._observer = observer
        self._clock = clock
        self._lock = threading.Lock()
        self._received = 0
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])
        self._sent_s: float | None = None

    def add(self, path: str, held: int, received: int = 0) -> None:
        """``held`` more bytes of a file are there, ``received`` ones came over the network."""
        with self._lock:
            self._hold(self._counts[path], self._counts[path].held + held)
            self._received += received
            self._tell()

    def lost(self, path: str) -> None:
        """A file is fetched again from its beginning."""
        with self._lock:
            self._counts[path].held = 0

    def verified(self, path: str) -> None:
        """A file is whole and right."""
        with self._lock:
            count = self._counts[path]
            self._hold(count, count.size)
            count.verified = True
            self._tell()

    def finish(self) -> None:
        """Tell the last state, however short ago the one before was."""
        with self._lock:
            self._tell(at_once=True)

    def missing(self) -> int:
        """Bytes that are not there."""
        with self._lock:
            return sum(count.size - count.held for count in self._counts.values())

    def snapshot(self) -> Progress:
        """The present state."""
        with self._lock:
            return self._snapshot(self._clock())

    @staticmethod
    def _hold(count: _Count, held: int) -> None:
        count.held = min(held, count.size)
        count.shown = max(count.shown, count.held)

    def _tell(self, *, at_once: bool = False) -> None:
        now_s = self._clock()
        due = self._sent_s is None or now_s - self._sent_s >= INTERVAL_S
        if not (due or at_once):
            return
        self._sent_s = now_s
        self._sample(now_s)
        if self._observer is not None:
            self._observer(self._snapshot(now_s))

    def _sample(self, now_s: float) -> None:
        self._samples.append((now_s, self._received))
        while len(self._samples) > 2 and now_s - self._samples[1][0] >= WINDOW_S:
            self._samples.popleft()

    def _snapshot(self, now_s: float) -> Progress:
        counts = self._counts.values()
        total = sum(count.size for count in counts)
        missing = total - sum(count.held for count in counts)
        began_s, before = self._samples[0]
        elapsed_s = now_s - began_s
        rate = (self._received - before) / elapsed_s if elapsed_s > 0 else 0.0
        eta_s = missing / rate if rate else None
        return Progress(
            model_id=self._model_id,
            revision=self._revision,
            done=sum(count.shown for count in counts),
            verified=sum(count.size for count in counts if count.verified),
            total=total,
            rate=rate,
            eta_s=0.0 if not missing else eta_s,
            files=tuple(
                FileProgress(path, count.size, count.shown, count.verified)
                for path, count in self._counts.items()
            ),
        )
