"""How a call of a server elsewhere fails."""

from __future__ import annotations

from shammah.errors import ShammahError


class MalformedStreamError(Exception):
    """What came is not of the API that was asked."""


class CallError(ShammahError):
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
