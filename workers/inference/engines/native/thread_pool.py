"""Threads that work on one thing together: the caller's own and some that wait between calls.

Plain Python threads: they sleep while there is nothing to do, and a compiled kernel runs
without the interpreter's lock. (numba's own threads are slower to wake, or spin.)
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

Work = Callable[[int], object]
"""Is told the number of the member that does it."""


class _Helper:
    """A thread that does what it is given, until it is given nothing."""

    def __init__(self, member: int) -> None:
        self._member = member
        self._work: Work | None = None
        self._error: BaseException | None = None
        self._given, self._done = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self._serve, name=f"native-{member}", daemon=True).start()

    def give(self, work: Work | None) -> None:
        self._work = work
        self._given.release()

    def join(self) -> BaseException | None:
        """Wait for the end of the work; what it raised."""
        self._done.acquire()
        error, self._error = self._error, None
        return error

    def _serve(self) -> None:
        while True:
            self._given.acquire()
            if self._work is None:
                return
            try:
                self._work(self._member)
            except BaseException as error:
                self._error = error
            self._work = None
            self._done.release()


class ThreadPool:
    """``size`` threads, the caller's included. One thread at a time may call it."""

    def __init__(self, size: int) -> None:
        self._helpers = [_Helper(member) for member in range(1, size)]
        self.size = size
        self.close = weakref.finalize(self, _dismiss, list(self._helpers))
        """End the threads; also happens when the team is forgotten."""

    def run(self, work: Work) -> None:
        """Have every member call ``work``; returns when all have.

        Raises:
            BaseException: what the first that failed has raised.
        """
        for helper in self._helpers:
            helper.give(work)
        try:
            work(0)
        finally:
            # Of every one, or the next work would begin while this one goes on.
            errors = [helper.join() for helper in self._helpers]
        for error in errors:
            if error is not None:
                raise error


def _dismiss(helpers: list[_Helper]) -> None:
    for helper in helpers:
        helper.give(None)
