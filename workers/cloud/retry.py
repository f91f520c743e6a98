"""Whether a question is retried, and when. Pure: chance is passed in."""

from __future__ import annotations

from shammah.errors import ShammahError

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0
RETRY_AFTER_MAX_S = 60.0
"""What a server may ask for. When it wants longer, the failure is reported at once instead."""

ATTEMPTS = {
    "cloud_rate_limited": 5,
    "cloud_overloaded": 5,
    "cloud_server_error": 5,
    "cloud_conflict": 5,
    "cloud_unreachable": 3,
    "cloud_interrupted": 3,
    "cloud_truncated": 3,
    "cloud_timeout": 2,
}
"""Code to attempts in all. A network that is not there is not worth long waits, and a silent
server has had a minute already. What is not here would fail again."""


class CloudError(ShammahError):
    """A failed call. ``brief`` is the message without its details and full stop;
    ``retry_after_s`` and ``should_retry`` are what the server said of another attempt."""

    def __init__(
        self,
        code: str,
        message: str,
        hint: str = "",
        *,
        brief: str = "",
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(code, message, hint)
        self.brief = brief or message.rstrip(".")
        self.retry_after_s = retry_after_s
        self.should_retry = should_retry


def attempts(error: CloudError) -> int:
    """Return how many attempts a question gets that fails like this."""
    if error.should_retry is False:
        return 1
    known = ATTEMPTS.get(error.code, 1)
    return max(known, 3) if error.should_retry else known


def wait_s(error: CloudError, attempt: int, chance: float) -> float | None:
    """Seconds until the attempt after ``attempt`` (counted from 1); ``None``: there is none.

    Twice as long each time, half of it by ``chance`` (0 to 1), so that those who were refused
    together do not come back together. What the server asks for is waited for at least.
    """
    if attempt >= attempts(error):
        return None
    if error.retry_after_s is not None:
        if error.retry_after_s > RETRY_AFTER_MAX_S:
            return None
        return error.retry_after_s * (1 + chance / 10)
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (attempt - 1))
    return longest * (1 + chance) / 2
