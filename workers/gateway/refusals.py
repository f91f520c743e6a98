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
    400: (
        "cloud_bad_request cloud_not_configured context_too_long messages_invalid sampling_invalid "
        "schema_invalid schema_not_enforced"
    ),
    403: (
        "cloud_billing cloud_budget_spent cloud_declined cloud_key_rejected cloud_needs_consent "
        "cloud_price_unknown cloud_switched_off private"
    ),
    404: "cloud_model_unknown server_unknown",
    413: "cloud_too_large message_too_long",
    429: "busy cloud_rate_limited server_busy",
    502: "cloud_malformed cloud_server_error cloud_truncated server_error server_malformed",
    503: (
        "cloud_interrupted cloud_unreachable not_available server_interrupted server_unreachable "
        "worker_crashes worker_died worker_in_use worker_lost worker_silent worker_stopped"
    ),
    504: "cloud_timeout",
    529: "cloud_overloaded",
}
"""The codes of failures that are not the gateway's own, by status; other codes are 500."""
_STATUS_OF = {code: status for status, codes in _STATUS.items() for code in codes.split()}
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
    status = _STATUS_OF.get(failure.code, 500)
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
