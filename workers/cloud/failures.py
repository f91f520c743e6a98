"""Every way in which a call can fail, as code, message and hint.

Codes (stable): ``cloud_key_rejected``, ``cloud_billing``, ``cloud_model_unknown``,
``cloud_bad_request``, ``cloud_too_large``, ``cloud_conflict``, ``cloud_redirected``,
``cloud_rate_limited``, ``cloud_overloaded``, ``cloud_server_error``, ``cloud_unreachable``,
``cloud_tls``, ``cloud_timeout``, ``cloud_interrupted``, ``cloud_truncated``,
``cloud_malformed``. Which of them are worth another attempt: `retry`.
"""

from __future__ import annotations

import math
import os
import socket
import ssl
from collections.abc import Iterator

import anthropic
import httpx2

from shammah.settings.model import CloudSettings
from shammah.settings.network import PROXY_HINT, certificate_problem, proxy_for
from workers.cloud.request import Peer
from workers.network import UnusableProxyError
from workers.outgoing.errors import CallError, MalformedStreamError
from workers.outgoing.retry import retry_after_s

API_TEXT_MAX = 300
"""Characters of a server's own words that are shown."""

_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""What an error event inside a stream would have been as an HTTP status."""

_KEY_HINT = "Check ANTHROPIC_API_KEY (or api_key under [cloud] in config.toml)."
_ADDRESS_HINT = "Check ANTHROPIC_BASE_URL (or base_url under [cloud] in config.toml)"
_DAY_S = 24 * 3600.0
_AGAIN_HINT = "Ask again."
_NETWORK_HINT = "Check your network connection; local answers work without it."


_Refusal = tuple[str, str, str]
"""Code, what the server does, and a hint; an empty one says when to ask again."""

_REFUSALS: dict[int, _Refusal] = {
    401: ("cloud_key_rejected", "refused the API key", _KEY_HINT),
    402: ("cloud_billing", "requires payment first", "Check the billing page of your account."),
    403: ("cloud_key_rejected", "does not allow requests with this key", _KEY_HINT),
    404: (
        "cloud_model_unknown",
        "does not know the model {model!r:.80}",
        "Check model under [cloud] in config.toml.",
    ),
    407: (
        "cloud_unreachable",
        "is behind a proxy that needs a login",
        "Put name and password into HTTPS_PROXY: http://NAME:PASSWORD@HOST:PORT.",
    ),
    408: ("cloud_timeout", "timed out waiting for the request", _AGAIN_HINT),
    409: ("cloud_conflict", "reports a conflict", ""),
    413: (
        "cloud_too_large",
        "says the conversation is too long",
        "Start a new conversation, or ask with less text.",
    ),
    429: ("cloud_rate_limited", "is rate limiting", ""),
    503: ("cloud_overloaded", "is overloaded", ""),
    529: ("cloud_overloaded", "is overloaded", ""),
}
_REDIRECTED = ("cloud_redirected", "redirects to another address", f"{_ADDRESS_HINT}.")
_SERVER_ERROR = ("cloud_server_error", "failed", "")
_BAD_REQUEST = (
    "cloud_bad_request",
    "did not accept the question",
    "Follow what it says; if the conversation is too long, start a new one.",
)


def describe(error: Exception, settings: CloudSettings, peer: Peer, *, began: bool) -> CallError:
    """Return ``error`` in words. ``began``: the answer was already arriving.

    The words never hold the key, the question or the answer.
    """
    if isinstance(error, anthropic.APIStatusError):
        return _describe_refusal(error, settings, peer)
    for cause in _chain(error):
        found = _describe_cause(cause, peer, began)
        if found is not None:
            return found
    if isinstance(error, anthropic.APIConnectionError | httpx2.HTTPError):
        return _broken(peer) if began else _unreachable(peer, "the connection failed")
    return malformed(peer)


def truncated(peer: Peer) -> CallError:
    """The stream ended in good order, but not the answer."""
    return CallError(
        "cloud_truncated",
        f"{peer.subject} closed the connection before the answer was complete.",
        _AGAIN_HINT,
    )


def malformed(peer: Peer) -> CallError:
    """What came is not a stream of the Messages API."""
    hint = _AGAIN_HINT
    if not peer.is_anthropic:
        hint = f"{_ADDRESS_HINT}: the server there must speak the Messages API."
    return CallError(
        "cloud_malformed",
        f"{peer.subject} sent something that is not a Messages API response.",
        hint,
    )


def _describe_refusal(
    error: anthropic.APIStatusError, settings: CloudSettings, peer: Peer
) -> CallError:
    """Describe a status that means no, from the headers or from an error event in the stream."""
    status = error.status_code
    if status < 300:
        status = _STATUS_OF_TYPE.get(str(error.type), 500)
    other = _REDIRECTED if status < 400 else _SERVER_ERROR if status >= 500 else _BAD_REQUEST
    code, verb, hint = _REFUSALS.get(status, other)
    verb = verb.format(model=settings.model)
    if status == 404 and not peer.is_anthropic:
        hint = f"{hint[:-1]} and ANTHROPIC_BASE_URL, which must not end in /v1."
    detail = str(status)
    # A refused key is all that 401 says, and some servers repeat the key here.
    if status != 401 and (text := _own_words(error.api_message, settings.api_key.strip())):
        detail += f": {text}"
    headers = error.response.headers
    pause_s = retry_after_s(headers)
    return CallError(
        code,
        f"{peer.subject} {verb} ({detail}).",
        hint or _when_to_ask(pause_s),
        brief=f"{peer.subject} {verb}",
        retry_after_s=pause_s,
        should_retry={"true": True, "false": False}.get(headers.get("x-should-retry", "")),
    )


def _own_words(text: object, key: str) -> str:
    """Return the server's text on one line, without control characters and without the key."""
    if not isinstance(text, str):
        return ""
    text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.replace(key, "***").split()).rstrip(".")
    return text if len(text) <= API_TEXT_MAX else text[: API_TEXT_MAX - 1] + "…"


def _when_to_ask(seconds: float | None) -> str:
    if seconds is None:
        return "Ask again in a moment."
    if seconds > _DAY_S:
        return "Ask again in a few days."
    return f"Ask again in {max(1, math.ceil(seconds))} s."


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The deepest causes first: they say most."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _chain(inner)
    cause = error.__cause__ or error.__context__
    if cause is not None:
        yield from _chain(cause)
    yield error


def _describe_cause(cause: BaseException, peer: Peer, began: bool) -> CallError | None:
    match cause:
        case ssl.SSLError() if began:
            return _broken(peer)
        case ssl.SSLCertVerificationError():
            why = certificate_problem(os.environ) or cause.verify_message
            return CallError(
                "cloud_tls",
                f"{peer.subject} could not prove its identity ({why}).",
                "Check the clock of this machine, the proxy, and SSL_CERT_FILE.",
            )
        case ssl.SSLError():
            return CallError(
                "cloud_tls",
                f"No secure connection: {peer.subject} closed it.",
                f"{_ADDRESS_HINT}: https:// or http://?",
            )
        case socket.gaierror() | ConnectionRefusedError() | httpx2.ConnectTimeout() if (
            proxy := proxy_for(peer.url, os.environ)
        ):
            why = f"the proxy in {proxy.variable} cannot be reached"
            return _unreachable(peer, why, f"Check {proxy.variable} and NO_PROXY.")
        case socket.gaierror():
            return _unreachable(peer, "its name cannot be resolved (no network, or a wrong name)")
        case ConnectionRefusedError():
            return _unreachable(peer, "nothing is listening there", f"{_ADDRESS_HINT}.")
        case UnusableProxyError():
            found = _unreachable(peer, str(cause), PROXY_HINT)
            found.should_retry = False
            return found
        case MalformedStreamError():
            return malformed(peer)
        case httpx2.ProxyError():
            return _unreachable(peer, "the proxy refuses", "Check HTTPS_PROXY and NO_PROXY.")
        case httpx2.ConnectTimeout():
            return CallError(
                "cloud_timeout", f"{peer.subject} could not be reached in time.", _NETWORK_HINT
            )
        case httpx2.TimeoutException():
            what = "stopped responding midway" if began else "did not respond in time"
            return CallError("cloud_timeout", f"{peer.subject} {what}.", _AGAIN_HINT)
        case httpx2.RemoteProtocolError() | httpx2.ReadError() | httpx2.WriteError():
            return _broken(peer)
    return None


def _unreachable(peer: Peer, why: str, hint: str = _NETWORK_HINT) -> CallError:
    return CallError("cloud_unreachable", f"{peer.subject} cannot be reached: {why}.", hint)


def _broken(peer: Peer) -> CallError:
    return CallError(
        "cloud_interrupted",
        f"The connection broke before the answer was complete ({peer.subject_inside}).",
        _AGAIN_HINT,
    )
