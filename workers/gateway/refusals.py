"""What gets no answer, and how each API says so. Pure."""

from __future__ import annotations

import re
from enum import StrEnum

from shammah.bus.messages import Failed


class Dialect(StrEnum):
    """Whose shapes a client expects."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class RefusedError(Exception):
    """A request that gets no answer.

    Attributes:
        status: of HTTP.
        code: stable, for programs.
        message: for people; holds nothing of what was asked.
        param: the field that is at fault; empty: none.
        retry_s: seconds after which it may be tried again; 0: that would not help.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str = "", retry_s: int = 0
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_s = retry_s

    @property
    def headers(self) -> dict[str, str]:
        found = {"retry-after": str(self.retry_s)} if self.retry_s else {}
        return found | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def invalid(message: str, param: str = "") -> RefusedError:
    """A request that means nothing here."""
    return RefusedError(400, "invalid_request", message, param=param)


_STATUS = {
    "busy": 429,
    "cloud_bad_request": 400,
    "cloud_budget": 403,
    "cloud_declined": 403,
    "cloud_needs_consent": 403,
    "cloud_not_configured": 400,
    "cloud_overloaded": 529,
    "cloud_rate_limit": 429,
    "cloud_switched_off": 403,
    "cloud_too_large": 413,
    "cloud_unreachable": 503,
    "context_too_long": 400,
    "message_too_long": 413,
    "messages_invalid": 400,
    "not_available": 503,
    "private": 403,
    "sampling_invalid": 400,
    "schema_not_enforced": 400,
    "worker_crashes": 503,
    "worker_died": 503,
    "worker_silent": 503,
    "worker_stopped": 503,
}
RETRY_S = 5
"""After which a client may try again what was busy."""

_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_OPENAI = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

_SIZES = re.compile(r"([\d,]+) tokens.* holds ([\d,]+)")


def refusal_of(failure: Failed) -> RefusedError:
    """The refusal that a failed answer is."""
    status = _STATUS.get(failure.code, 500)
    retry_s = RETRY_S if status in (429, 503, 529) else 0
    said = f"{failure.message} {failure.hint}".rstrip()
    return RefusedError(status, failure.code, said, retry_s=retry_s)


def describe(refused: RefusedError, dialect: Dialect) -> dict[str, object]:
    """The refusal in the shape of an API. Where a conversation is too long, clients look for the
    API's own words."""
    message, code = refused.message, refused.code
    sizes = _SIZES.search(message) if code == "context_too_long" else None
    if dialect is Dialect.ANTHROPIC:
        kind = _ANTHROPIC.get(refused.status, "api_error")
        if code == "context_too_long":
            numbers = ": {} tokens > {} maximum".format(*_plain(sizes)) if sizes else ""
            message = f"prompt is too long{numbers}. {message}"
        return {"type": "error", "error": {"type": kind, "message": message}}
    server = "invalid_request_error" if refused.status < 500 else "server_error"
    kind = _OPENAI.get(refused.status, server)
    if code == "context_too_long":
        code = "context_length_exceeded"
        if sizes:
            had, holds = _plain(sizes)
            most = f"This model's maximum context length is {holds} tokens."
            message = f"{most} However, your messages resulted in {had} tokens. {message}"
    error = {"message": message, "type": kind, "param": refused.param or None, "code": code}
    return {"error": error}


def _plain(sizes: re.Match[str]) -> list[str]:
    return [number.replace(",", "") for number in sizes.groups()]
