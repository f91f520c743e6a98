"""Threads that work on one thing together: the caller's own and some that wait between calls.

Plain Python threads: they sleep while there is nothing to do, and a compiled kernel runs
without the interpreter's lock. (numba's own threads are slower to wake, or spin.)
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

Work = Callable[[int], object]
"""Gets the number of the member that does it."""


class ThreadPool:
    """``size`` threads, the caller's included. One thread at a time may call it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._helpers = ThreadPoolExecutor(max(1, size - 1), thread_name_prefix="native")

    def run(self, work: Work) -> None:
        """Call ``work`` for every member; return when all calls have ended.

        Raises:
            BaseException: what the first that failed has raised.
        """
        others = [self._helpers.submit(work, member) for member in range(1, self.size)]
        try:
            work(0)
        finally:
            wait(others)  # for all, or the next work would begin while this one goes on
        for one in others:
            one.result()

    def close(self) -> None:
        """End the threads; also happens when the pool is garbage."""
        self._helpers.shutdown()
