"""Every way in which a download can fail, as code, message and hint.

Codes (stable): ``hub_unreachable`` (no network, or none that works: the caller may say "not
available"), ``model_not_found``, ``model_gated``, ``revision_not_found``, ``hub_forbidden``,
``hub_error`` (everything else that a server does), ``size_mismatch``, ``hash_mismatch``,
``disk_full``, ``cache_error``, ``download_cancelled``; from `listing`: ``model_unsupported``.
"""

from __future__ import annotations

import errno
import math
import os
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx2

from shammah.errors import ShammahError
from shammah.settings.network import PROXY_HINT, certificate_problem, proxy_for
from workers.network import UnusableProxyError

_TEMPORARY = frozenset({408, 425, 429})
_SERVER_TEXT_MAX = 200
_GIB = 1024**3

_LATER = "Try again later; partial downloads are kept."
_NETWORK = "Check the network connection (and HTTPS_PROXY); partial downloads are kept."
_CERTIFICATES = "Check the clock, HF_ENDPOINT, proxies on the way, and SSL_CERT_FILE."
_ENDPOINT = "Check the address in HF_ENDPOINT, and proxies on the way."
_TOKEN = "Log in with `hf auth login`, or set HF_TOKEN."


_NO_WAY = (socket.gaierror, ConnectionRefusedError, httpx2.ConnectTimeout)
"""What happens between here and the first server on the way, which may be a proxy."""


class TemporaryError(Exception):
    """Worth another attempt.

    Attributes:
        failure: what to tell if that was the last one.
        retry_after_s: what the server asked for.
    """

    def __init__(self, failure: ShammahError, retry_after_s: float | None = None) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.retry_after_s = retry_after_s


def chain(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what caused it. Libraries wrap true causes in misleading errors."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def origin(url: httpx2.URL | str) -> str:
    """Scheme, host and port: what may be shown of an address that holds a signature."""
    url = httpx2.URL(url)
    port = f":{url.port}" if url.port else ""
    return f"{url.scheme}://{url.host}{port}"


def is_temporary(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status in _TEMPORARY or status >= 500


def retry_after(headers: httpx2.Headers, wall_s: float) -> float | None:
    """Seconds that the server asks to wait, given as a number or as a date."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        seconds = (moment - datetime.fromtimestamp(wall_s, UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def describe_response(response: httpx2.Response, model_id: str, subject: str = "") -> ShammahError:
    """An answer with an error status, in words.

    Args:
        response: only its status, headers and request are looked at.
        model_id: whose files were asked for.
        subject: the file, if the question was about one.
    """
    status, code = response.status_code, response.headers.get("x-error-code", "")
    where = origin(response.request.url)
    told = response.headers.get("x-error-message", "")[:_SERVER_TEXT_MAX].strip()
    said = f' and says "{told}"' if told else ""
    if code == "GatedRepo":
        message = f"{model_id} is gated: its owners decide who may download it."
        hint = f"Ask for access on the model's page. {_TOKEN}"
        return ShammahError("model_gated", message, hint)
    if code == "RevisionNotFound":
        message = f"{model_id} has no such revision{said}."
        return ShammahError("revision_not_found", message, "Name a branch, a tag or a commit.")
    missing = code == "RepoNotFound" or (status == 404 and not code and not subject)
    if missing and not ("Authorization" in response.request.headers and status == 401):
        message = f"There is no model {model_id} at {where}, or it is private."
        return ShammahError(
            "model_not_found", message, f"Check its name. If it is private: {_TOKEN}"
        )
    if status in (401, 403, 407):
        message = f"{where} refused {subject or model_id} (HTTP {status}){said}."
        hint = f"The token may be wrong, expired or without this right. {_TOKEN}"
        return ShammahError("hub_forbidden", message, hint)
    if status == 404 and subject:
        message = f"{where} no longer has {subject} of {model_id} at this revision."
        return ShammahError("hub_error", message, "Fetch the model again.")
    if status == 429:
        return ShammahError("hub_error", f"{where} is rate-limiting requests{said}.", _LATER)
    message = f"{where} returned HTTP {status} for {subject or model_id}{said}."
    return ShammahError("hub_error", message, _LATER if is_temporary(status) else _ENDPOINT)


def describe_network(error: BaseException, url: httpx2.URL | str) -> ShammahError:
    """A failure to reach ``url``, or to stay connected to it, in words."""
    where, why, hint = origin(url), "the connection failed", _NETWORK
    for cause in chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            verified = getattr(cause, "verify_message", str(cause))
            detail = certificate_problem(os.environ) or verified
            why, hint = f"its certificate is not accepted ({detail})", _CERTIFICATES
        elif isinstance(cause, socket.gaierror):
            why = "its name could not be resolved"
        elif isinstance(cause, ConnectionRefusedError):
            why, hint = "the connection was refused", f"{_NETWORK} {_ENDPOINT}"
        elif isinstance(cause, ConnectionResetError):
            why = "the connection was reset"
        elif isinstance(cause, httpx2.ConnectTimeout):
            why = "connecting timed out"
        elif isinstance(cause, httpx2.TimeoutException):
            why = "it stopped answering"
        elif isinstance(cause, httpx2.RemoteProtocolError):
            why = "it closed the connection too early"
        elif isinstance(cause, UnusableProxyError):
            why, hint = str(cause), PROXY_HINT
        elif isinstance(cause, httpx2.ProxyError):
            why = f"the proxy refused ({cause})"
        else:
            continue
        if isinstance(cause, _NO_WAY) and (proxy := proxy_for(str(url), os.environ)):
            why = f"the proxy that {proxy.variable} names cannot be reached ({why})"
            hint = f"Check {proxy.variable} and NO_PROXY; partial downloads are kept."
        break
    return ShammahError("hub_unreachable", f"Could not reach {where}: {why}.", hint)


def not_a_hub(url: str, why: str) -> ShammahError:
    """Something answers, but not as the Hub does."""
    return ShammahError(
        "hub_error", f"{origin(url)} does not behave like a Hugging Face Hub: {why}.", _ENDPOINT
    )


def ended_early(url: str, path: str) -> ShammahError:
    """In good order, but not with the last byte."""
    message = f"{origin(url)} keeps ending the transfer of {path} too early."
    return ShammahError("hub_unreachable", message, _LATER)


def size_mismatch(path: str, expected: int, found: str) -> ShammahError:
    """What is served has another length than what was announced."""
    message = f"{path} should have {expected} bytes, but the server offers {found}."
    return ShammahError("size_mismatch", message, _ENDPOINT)


def hash_mismatch(path: str, expected: str, found: str) -> ShammahError:
    """Fetched twice, and wrong twice."""
    message = f"{path} arrived damaged twice: its hash is {found[:12]}…, expected {expected[:12]}…."
    return ShammahError("hash_mismatch", message, _ENDPOINT)


def cancelled(model_id: str) -> ShammahError:
    """The user asked for it."""
    message = f"The download of {model_id} was cancelled."
    hint = "Start it again to continue where it stopped."
    return ShammahError("download_cancelled", message, hint)


def disk_full(directory: Path, wanted: int, free: int, reserve: int = 0) -> ShammahError:
    """``wanted`` bytes do not fit into ``free`` ones, of which ``reserve`` should stay free."""
    kept = f" ({_words(reserve)} must stay free)" if reserve else ""
    message = (
        f"The disk is too small: {_words(wanted)} still have to be written to {directory}, but "
        f"only {_words(free)} are free{kept}."
    )
    hint = "Free some space (`shammah models list` shows models) or set HF_HOME; nothing is lost."
    return ShammahError("disk_full", message, hint)


def describe_disk(error: OSError, directory: Path, wanted: int) -> ShammahError:
    """A failure to write to the cache, in words. ``wanted``: bytes still missing."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(directory, wanted, free_bytes(directory))
    if error.errno == errno.EFBIG:
        message = f"The file system of {directory} does not support files this large."
        return ShammahError("disk_full", message, "Set HF_HOME to a directory on another one.")
    why = error.strerror or str(error)
    message = f"The cache in {directory} cannot be written ({why}: {error.filename or 'a file'})."
    return ShammahError("cache_error", message, "Check its permissions, or set HF_HOME.")


def _words(size: int) -> str:
    return f"{size / _GIB:.2f} GiB" if size >= _GIB else f"{size / 1024**2:.1f} MiB"


def free_bytes(directory: Path) -> int:
    """What this user may still write where ``directory`` is, or will be."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize
