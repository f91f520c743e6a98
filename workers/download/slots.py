"""Who may use a connection now: the downloads that somebody waits for come first."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Slots:
    """So many connections for all downloads together, given by priority, then by turn."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._changed = threading.Condition()
        self._turns = itertools.count()
        self._waiting: list[tuple[int, int]] = []

    @contextmanager
    def taken(self, priority: int, check: Callable[[], None]) -> Iterator[None]:
        """Hold a slot. ``check`` is called at every `wake` while waiting, and may raise."""
        ticket = (-priority, next(self._turns))
        with self._changed:
            heapq.heappush(self._waiting, ticket)
            try:
                while self._free == 0 or self._waiting[0] != ticket:
                    self._changed.wait()
                    check()
            except BaseException:
                self._withdraw(ticket)
                raise
            heapq.heappop(self._waiting)
            self._free -= 1
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()

    def outranked(self, priority: int) -> bool:
        """Whether something more urgent waits for a slot."""
        first = self._waiting[:1]  # one read: other threads change the list
        return bool(first) and -first[0][0] > priority

    def wake(self) -> None:
        """Make everyone who waits call its ``check``."""
        with self._changed:
            self._changed.notify_all()

    def _withdraw(self, ticket: tuple[int, int]) -> None:
        self._waiting.remove(ticket)
        heapq.heapify(self._waiting)
        self._changed.notify_all()
