"""What the person should read when there is a moment for it."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable

Put = Callable[["str | Callable[[], Iterable[str]]"], None]


class Notices:
    """Sentences that any thread puts and the one that writes on the screen takes.

    Attributes:
        on_put: called by the thread that puts, after each.
    """

    def __init__(self) -> None:
        self.on_put: Callable[[], None] = lambda: None
        self._waiting: queue.SimpleQueue[str | Callable[[], Iterable[str]]] = queue.SimpleQueue()

    def put(self, notice: str | Callable[[], Iterable[str]]) -> None:
        """Have a sentence read, or those that a function returns which is called by the reader,
        between two questions: what it does then disturbs no answer."""
        self._waiting.put(notice)
        self.on_put()

    def take(self) -> list[str]:
        """What nobody has read yet, in its order."""
        found: list[str] = []
        while not self._waiting.empty():
            notice = self._waiting.get()
            found += [notice] if isinstance(notice, str) else notice()
        return found
