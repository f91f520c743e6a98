"""A thread for writes that nothing waits for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Job(Generic[Result]):
    """Work for the thread, and later its result."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._ended = threading.Event()
        self._results: list[Result] = []
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._results.append(self._work())
        except Exception as error:  # the thread continues with the next job
            self._error = error
        finally:
            self._ended.set()

    def wait(self, seconds: float) -> bool:
        """Return whether it ends within ``seconds``."""
        return self._ended.wait(seconds)

    def result(self) -> Result:
        """Wait for what the work returns, or raise what it raised."""
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._results[0]


class BackgroundWriter:
    """Runs jobs one after the other on a thread that the first one starts.

    Args:
        name: of the thread.
        at_end: run on the thread after the last job.
    """

    def __init__(self, name: str, at_end: Callable[[], None] = lambda: None) -> None:
        self._name = name
        self._at_end = at_end
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def begun(self) -> bool:
        return self._thread is not None

    def put(self, work: Callable[[], Result]) -> Job[Result]:
        """Have ``work`` done after what was put before."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        job = Job(work)
        self._jobs.put(job.run)
        return job

    def close(self, seconds: float) -> bool:
        """Do what is left, and no more; return whether that took less than ``seconds``. May be
        called again, to wait longer."""
        if self._thread is None:
            return True
        self._jobs.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (run := self._jobs.get()) is not None:
            run()
        self._at_end()
