"""Pause, resume and cancel of one download, from any thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from workers.download import failures

BEAT_S = 10.0
"""How often a paused download reports that it is alive."""


class Control:
    """What somebody wants of a download. Worker threads look at it between two chunks.

    Args:
        clock: counts seconds and never goes back.
        alive: called whenever somebody looks, and during a pause: so a client that waits for a long
            check of files, or through a pause, is not led to think that the worker is stuck.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._alive = alive
        self._changed = threading.Condition()
        self._paused = False
        self._cancelled = False
        self._listeners: list[Callable[[], None]] = []

    @property
    def paused(self) -> bool:
        return self._paused

    @property
    def interrupted(self) -> bool:
        """Whether connections are to be let go of."""
        return self._paused or self._cancelled

    def pause(self) -> None:
        """Close the connections and keep what has arrived."""
        self._set(paused=True)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._set(paused=False)

    def cancel(self) -> None:
        """End the download for good; what has arrived stays on the disk for another one."""
        self._set(paused=False, cancelled=True)

    def _set(self, *, paused: bool, cancelled: bool = False) -> None:
        with self._changed:
            self._paused = paused and not self._cancelled
            self._cancelled |= cancelled
            self._changed.notify_all()
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` after every change, on the thread that made it."""
        with self._changed:
            self._listeners.append(listener)

    def forget(self, listener: Callable[[], None]) -> None:
        """Undo `listen`."""
        with self._changed:
            self._listeners.remove(listener)

    def check(self, model_id: str, ended: Callable[[], bool] = lambda: False) -> None:
        """Return when the work may go on: at once, or when a pause ends.

        Also after `wake`, once ``ended`` is true.

        Raises:
            ShammahError: ``download_cancelled``.
        """
        self._alive()
        with self._changed:
            while not self._changed.wait_for(
                lambda: self._cancelled or not self._paused or ended(), BEAT_S
            ):
                self._alive()
            if self._cancelled:
                raise failures.cancelled(model_id)

    def wait(self, seconds: float, ended: Callable[[], bool] = lambda: False) -> None:
        """Sleep; a pause, a cancel, or `wake` once ``ended`` is true, ends it early."""
        deadline = self._clock() + seconds
        with self._changed:
            while not (self._paused or self._cancelled or ended()):
                left = deadline - self._clock()
                if left <= 0:
                    return
                self._changed.wait(left)

    def wake(self) -> None:
        """Let sleepers look at their ``ended`` again."""
        with self._changed:
            self._changed.notify_all()
