"""Whether a question is retried, and when. Pure: chance is passed in."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from workers.outgoing.errors import CallError

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
    "server_busy": 5,
    "server_error": 5,
    "server_unreachable": 3,
    "server_interrupted": 3,
}
"""Code to attempts in all. A network that is not there is not worth long waits, and a silent
server has had a minute already. What is not here would fail again."""


def attempts(error: CallError) -> int:
    """Return how many attempts a question gets that fails like this."""
    if error.should_retry is False:
        return 1
    known = ATTEMPTS.get(error.code, 1)
    return max(known, 3) if error.should_retry else known


def wait_s(error: CallError, attempt: int, chance: float) -> float | None:
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


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return seconds to wait, from a number or a date; ``None`` if unknown."""
    with contextlib.suppress(ValueError):
        milliseconds = float(headers.get("retry-after-ms", ""))
        if math.isfinite(milliseconds):
            return max(0.0, milliseconds / 1000)
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            then = parsedate_to_datetime(value)
        except ValueError:
            return None
        # A date without a zone is UTC, like every date in HTTP.
        then = then if then.tzinfo else then.replace(tzinfo=UTC)
        seconds = (then - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None
