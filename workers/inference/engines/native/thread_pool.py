"""Threads that work on one thing together: the caller's own and some that wait between calls.

Plain Python threads: they sleep while there is nothing to do, and a compiled kernel runs
without the interpreter's lock. (numba's own threads are slower to wake, or spin.)
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

Work = Callable[[int], object]
"""Gets the number of the member that does it."""

Stop = Callable[[], object]
"""Has all members end their work soon. Any thread may call it."""


def _nothing() -> None:
    """Of work that ends by itself."""


class ThreadPool:
    """``size`` threads, the caller's included. One thread at a time may call it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._stop: Stop = _nothing
        self._helpers = ThreadPoolExecutor(max(1, size - 1), thread_name_prefix="native")

    def run(self, work: Work, stop: Stop | None = None) -> None:
        """Call ``work`` for every member; return when all calls have ended.

        If one fails, the others, who may wait for what it has not done, are stopped.

        Raises:
            BaseException: what the first that failed has raised.
        """
        stop = self._stop = stop or _nothing

        def attempt(member: int) -> None:
            try:
                work(member)
            except BaseException:
                stop()
                raise

        others: list[Future[None]] = []
        try:
            for member in range(1, self.size):
                others.append(self._helpers.submit(attempt, member))
            work(0)
        except BaseException:
            stop()
            raise
        finally:
            wait(others)  # for all, or the next work would begin while this one goes on
            self._stop = _nothing
        for one in others:
            one.result()

    def close(self) -> None:
        """Stop what is being done and end the threads; the latter also happens when the pool is
        garbage."""
        self._stop()
        self._helpers.shutdown()
