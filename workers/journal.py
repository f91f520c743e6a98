"""The numbered snapshots that a worker publishes, and the last of them kept for replay."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from shammah.bus.messages import Event, Status

KEPT_EVENTS = 1000


class Journal:
    """Events of one run of one worker, numbered from 1 without gaps."""

    def __init__(
        self,
        role: str,
        run_id: str,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._role = role
        self._run_id = run_id
        self._monotonic = monotonic
        self._wall = wall
        self._kept: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._seq = 0

    def record(self, what: str, status: Status, request_id: str = "") -> Event:
        """The next event, kept and returned."""
        self._seq += 1
        now, wall = self._monotonic(), self._wall()
        event = Event(
            self._role,
            self._run_id,
            seq=self._seq,
            monotonic_s=now,
            wall_s=wall,
            what=what,
            status=status,
            request_id=request_id,
        )
        self._kept.append(event)
        return event

    @property
    def latest(self) -> Event | None:
        return self._kept[-1] if self._kept else None

    def since(self, seq: int) -> tuple[tuple[Event, ...], bool]:
        """The kept events after ``seq``, and whether none in between was already dropped."""
        events = tuple(event for event in self._kept if event.seq > seq)
        oldest_kept = self._kept[0].seq if self._kept else 1
        return events, max(seq, 0) + 1 >= oldest_kept
