"""When to try again: exponential backoff with full jitter."""

from __future__ import annotations

from collections.abc import Callable

from workers.download.failures import TemporaryError
from workers.download.limits import Limits


class Patience:
    """Counts attempts that brought nothing; one that brought something resets the count.

    ``random``: evenly between 0 and 1.
    """

    def __init__(self, attempts: int, limits: Limits, random: Callable[[], float]) -> None:
        self._attempts = attempts
        self._limits = limits
        self._random = random
        self._failed = 0

    def progressed(self) -> None:
        """The last attempt brought something."""
        self._failed = 0

    def failed(self, error: TemporaryError) -> float:
        """How many seconds to wait before the next attempt.

        Raises:
            ShammahError: there should be none.
        """
        self._failed += 1
        if self._failed >= self._attempts:
            raise error.failure from error
        limits = self._limits
        if error.retry_after_s is not None:
            return min(error.retry_after_s, limits.retry_after_max_s)
        ceiling: float = limits.backoff_s * 2 ** (self._failed - 1)
        return self._random() * min(ceiling, limits.backoff_max_s)

    def describe(self, error: TemporaryError, wait_s: float) -> str:
        """What is waited for, in words for people, once `failed` has said for how long."""
        why = error.failure.message.rstrip(".")
        return f"attempt {self._failed + 1} of {self._attempts} in {wait_s:.0f} s, since {why}"
