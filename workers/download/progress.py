"""How far a download is, as snapshots that never go backwards."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shammah.bus.transfers import FileTransfer, Transfer
from workers.listing import RemoteFile

INTERVAL_S = 0.2
"""Snapshots are sent at most this often, but for news that cannot wait: a notice, the beginning
and the end of a silence, the last byte, the end."""

WINDOW_S = 10.0
"""The rate is the average over this long."""

SILENCE_S = 3.0
"""Nothing has arrived for this long: worth a word."""

NOTICES = 8
"""So many are kept."""


@dataclass(slots=True)
class _Count:
    size: int
    held: int = 0
    shown: int = 0
    verified: bool = False


@dataclass(frozen=True, slots=True)
class _Wait:
    """Before another attempt, and why. ``received``: bytes, when it began."""

    why: str = ""
    until_s: float = 0.0
    received: int = -1


class Meter:
    """Counts what worker threads report and tells one observer.

    Args:
        model_id: of what.
        revision: the commit.
        files: which belong to it.
        observer: called with snapshots, one at a time, on the threads that report: it must be
            quick. ``None``: nobody watches.
        clock: seconds, never going back.
        expected: bytes per second to reckon with until the first ones arrive; 0: unknown.
    """

    def __init__(
        self,
        model_id: str,
        revision: str,
        files: Iterable[RemoteFile],
        observer: Callable[[Transfer], None] | None,
        clock: Callable[[], float],
        expected: float = 0.0,
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
        self._received_s = clock()
        self._expected = expected
        self._flow = (0, 0.0)
        self._flowing_since_s: float | None = None
        self._notices: deque[str] = deque(maxlen=NOTICES)
        self._wait = _Wait()

    def add(self, path: str, held: int, received: int = 0) -> None:
        """``held`` more bytes of a file are there, ``received`` ones came over the network."""
        with self._lock:
            held = self._hold(self._counts[path], self._counts[path].held + held)
            was_waiting = bool(self._detail(self._clock()))
            self._received += received
            if received:
                self._received_s = self._clock()
                self._flowed(received)
            last = held > 0 and not self._missing()
            self._report(at_once=last or (was_waiting and received > 0))

    def lost(self, path: str) -> None:
        """A file is fetched again from its beginning."""
        with self._lock:
            self._counts[path].held = 0

    def notice(self, text: str) -> None:
        """Something that people should know."""
        with self._lock:
            self._notices.append(text)
            self._report(at_once=True)

    def waiting(self, why: str, wait_s: float) -> None:
        """A connection brings nothing for ``wait_s`` from now on. Told if none brings any."""
        with self._lock:
            now_s = self._clock()
            if now_s + wait_s >= self._wait.until_s:  # several may wait: the longest counts
                self._wait = _Wait(why, now_s + wait_s, self._received)
            if self._detail(now_s):
                self._report(at_once=True)

    def resumed(self) -> None:
        """What was not received during a pause says nothing about the rate."""
        with self._lock:
            self._received_s = self._clock()
            self._flowing_since_s = None
            self._samples = deque([(self._received_s, self._received)])

    def tick(self) -> None:
        """Time has passed: tell so, if nothing else was told."""
        with self._lock:
            self._report()

    def verified(self, path: str) -> None:
        """A file is whole and right."""
        with self._lock:
            count = self._counts[path]
            self._hold(count, count.size)
            count.verified = True
            self._report()

    def finish(self) -> None:
        """Tell the last state, however short ago the one before was."""
        with self._lock:
            self._report(at_once=True)

    def missing(self) -> int:
        """Bytes that are not there."""
        with self._lock:
            return self._missing()

    def flow(self) -> tuple[int, float]:
        """Bytes that came over the network, and the seconds that they took, without pauses and
        what was before the first of them."""
        with self._lock:
            return self._flow

    def _flowed(self, received: int) -> None:
        now_s, since_s = self._received_s, self._flowing_since_s
        self._flowing_since_s = now_s
        if since_s is not None:
            self._flow = (self._flow[0] + received, self._flow[1] + now_s - since_s)

    def snapshot(self) -> Transfer:
        """The present state."""
        with self._lock:
            return self._snapshot(self._clock())

    def _missing(self) -> int:
        return sum(count.size - count.held for count in self._counts.values())

    @staticmethod
    def _hold(count: _Count, held: int) -> int:
        """Note how much of a file is there; how much more than before that is."""
        before, count.held = count.held, min(held, count.size)
        count.shown = max(count.shown, count.held)
        return count.held - before

    def _report(self, *, at_once: bool = False) -> None:
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

    def _snapshot(self, now_s: float) -> Transfer:
        counts = self._counts.values()
        total = sum(count.size for count in counts)
        missing = self._missing()
        began_s, before = self._samples[0]
        elapsed_s = now_s - began_s
        rate = (self._received - before) / elapsed_s if elapsed_s > 0 else 0.0
        expected = rate if self._received else self._expected
        eta_s = missing / expected if expected else None
        return Transfer(
            self._model_id,
            self._revision,
            phase=phase_of(total, missing),
            done=sum(count.shown for count in counts),
            total=total,
            rate=rate,
            eta_s=0.0 if not missing else eta_s,
            files=tuple(
                FileTransfer(path, count.size, count.shown, count.verified)
                for path, count in self._counts.items()
            ),
            notices=tuple(self._notices),
            detail=self._detail(now_s),
        )

    def _detail(self, now_s: float) -> str:
        """Why nothing arrives, if nothing does or will for a while."""
        wait, silent_s = self._wait, now_s - self._received_s
        if not self._missing():
            return ""
        will_be_silent = (
            wait.received == self._received and wait.until_s - self._received_s >= SILENCE_S
        )
        if now_s < wait.until_s and (will_be_silent or silent_s >= SILENCE_S):
            return wait.why
        if silent_s < SILENCE_S:
            return ""
        return f"no data for {silent_s:.0f} s"


def phase_of(total: int, missing: int) -> str:
    """`Transfer.phase` of a download that nobody has paused."""
    if not total:
        return "waiting"
    return "running" if missing else "verifying"
