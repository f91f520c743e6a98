"""Questions to the Hub about a model, through huggingface_hub, with an end to every wait."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import httpx2
from huggingface_hub import HfApi, close_session, constants, hf_hub_url, set_client_factory
from huggingface_hub.errors import (
    DeviceCodeError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    OIDCError,
)
from huggingface_hub.hf_api import ModelInfo, RepoFile
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # lazily so
    build_hf_headers,
    get_session,
)

import shammah
from shammah.errors import ShammahError
from workers import network
from workers.download import failures
from workers.download.control import Control
from workers.download.failures import TemporaryError
from workers.download.limits import Limits
from workers.download.retry import Patience
from workers.listing import RemoteFile, RepositoryListing, check_file

_COMMIT = re.compile(r"[0-9a-f]{40}")

OnWait = Callable[[str], None]
"""Told what is waited for before another attempt."""


def _unheard(_why: str) -> None:
    pass


_WANTED: ContextVar[tuple[str, Control, OnWait]] = ContextVar(
    "_WANTED", default=("it", Control(), _unheard)
)
"""The model that this thread asks about: the library hands nothing through to its client."""

# At INFO it writes every address down, and those of storage hold signatures.
logging.getLogger("httpx2").setLevel(logging.WARNING)


class Hub:
    """One Hub, by default the one that HF_ENDPOINT names.

    huggingface_hub has one HTTP client for the whole process: this sets it.

    Args:
        limits: of time.
        random: evenly between 0 and 1, for the waits between attempts.
        endpoint: its address.
        token: a Hub token; ``None``: the one that huggingface_hub finds, ``False``: none.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        limits: Limits,
        random: Callable[[], float],
        *,
        endpoint: str | None = None,
        token: str | bool | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._token = token
        set_client_factory(lambda: _Client(limits, random, wall))

    def close(self) -> None:
        """Close the connections."""
        close_session()

    def headers(self) -> dict[str, str]:
        """For requests to this Hub: the token, if there is one, and who asks.

        Raises:
            ShammahError: ``hub_forbidden``: the token cannot be had.
        """
        try:
            headers: dict[str, str] = build_hf_headers(
                token=self._token, library_name="shammah", library_version=shammah.__version__
            )
        except (OSError, OIDCError, DeviceCodeError, httpx2.HTTPError) as error:
            message = f"The Hub token could not be read ({error})."
            raise ShammahError("hub_forbidden", message, "Run `hf auth login` again.") from error
        return headers

    def file_url(self, model_id: str, revision: str, path: str) -> str:
        """Where the Hub serves a file."""
        url: str = hf_hub_url(model_id, path, revision=revision, endpoint=self.endpoint)
        return url

    def listing(
        self, model_id: str, revision: str, control: Control, on_wait: OnWait = _unheard
    ) -> RepositoryListing:
        """Everything that the repository holds at a branch, tag or commit.

        A cancel ends waits between attempts, but not a question that is under way.

        Raises:
            ShammahError: see `failures`.
        """
        headers = self.headers()
        wanted = _WANTED.set((model_id, control, on_wait))
        try:
            # The token is in the headers, found once.
            api = HfApi(endpoint=self.endpoint, token=False, headers=headers)
            info = api.model_info(model_id, revision=revision)
            commit = info.sha
            if not commit or not _COMMIT.fullmatch(commit):
                raise failures.not_a_hub(self.endpoint, "it names no commit")
            entries = api.list_repo_tree(model_id, recursive=True, revision=commit)
            files = tuple(_file(entry) for entry in entries if isinstance(entry, RepoFile))
        except ShammahError:
            raise
        except HFValidationError as error:
            raise ShammahError("model_not_found", f"{error}", "Check its name.") from error
        except Exception as error:  # the library's own, httpx2's, and what odd documents cause
            raise _describe(error, self.endpoint, model_id) from error
        finally:
            _WANTED.reset(wanted)
        for file in files:
            check_file(file)
        return RepositoryListing(model_id, commit, _licence(info), files)

    def read(self, model_id: str, revision: str, file: RemoteFile) -> bytes:
        """The content of a small file: no more of it than one byte too many; not verified.

        Raises:
            ShammahError: see `failures`.
        """
        url = self.file_url(model_id, revision, file.path)
        headers = {**self.headers(), "accept-encoding": "identity"}
        wanted = _WANTED.set((model_id, Control(), _unheard))
        content = b""
        try:
            with get_session().stream("GET", url, headers=headers) as response:
                if response.status_code != 200:
                    raise failures.describe_response(response, model_id, file.path)
                for piece in response.iter_raw():
                    content += piece
                    if len(content) > file.size:
                        break
        except ShammahError:
            raise
        except Exception as error:  # as in `listing`; here the body may break off, too
            raise _describe(error, self.endpoint, model_id) from error
        finally:
            _WANTED.reset(wanted)
        return content


class _Client(httpx2.Client):
    """Tries again by our rules, and fails in a way that keeps the library from trying longer.

    The library sets no time-outs, gives up at once in some calls and after minutes in others.
    """

    def __init__(
        self,
        limits: Limits,
        random: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._bounds = httpx2.Timeout(limits.metadata_s, connect=limits.connect_s)
        self._limits = limits
        self._random = random
        self._wall = wall
        super().__init__(
            follow_redirects=True,
            timeout=self._bounds,
            mounts=network.mounts(),
            verify=network.ssl_context(),
        )

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        if constants.is_offline_mode():
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
        request.extensions["timeout"] = self._bounds.as_dict()
        patience = Patience(self._limits.metadata_attempts, self._limits, self._random)
        while True:
            try:
                return self._attempt(request, options)
            except TemporaryError as error:
                model_id, control, on_wait = _WANTED.get()
                wait_s = patience.failed(error)
                on_wait(patience.describe(error, wait_s))
                control.wait(wait_s)
                control.check(model_id)

    def _attempt(self, request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
        try:
            response = super().send(request, **options)
        except (httpx2.ConnectError, httpx2.TimeoutException, httpx2.ProxyError) as error:
            # No network is the everyday case: to be told at once.
            raise failures.describe_network(error, request.url) from error
        except (httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
            raise TemporaryError(failures.describe_network(error, request.url)) from error
        if failures.is_temporary(response.status_code):
            response.close()
            failure = failures.describe_response(response, "the model")
            raise TemporaryError(failure, failures.retry_after(response.headers, self._wall()))
        return response


def _file(entry: RepoFile) -> RemoteFile:
    sha256 = entry.lfs.sha256 if entry.lfs else None
    return RemoteFile(entry.path, entry.size, sha256, entry.blob_id, entry.xet_hash)


def _licence(info: ModelInfo) -> str:
    card = info.card_data
    found = card.get("license_name") or card.get("license") if card else None
    tagged = (tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:"))
    return found if isinstance(found, str) else next(tagged, "")


def _describe(error: Exception, endpoint: str, model_id: str) -> ShammahError:
    for cause in failures.chain(error):
        if isinstance(cause, ShammahError):
            return cause
        if isinstance(cause, OfflineModeIsEnabled):
            message = "HF_HUB_OFFLINE is set, so nothing is downloaded."
            return ShammahError("hub_unreachable", message, "Unset it to download models.")
        if isinstance(cause, HfHubHTTPError):
            return failures.describe_response(cause.response, model_id)
        if isinstance(cause, httpx2.TooManyRedirects):
            return failures.not_a_hub(endpoint, "it redirects in a circle")
        if isinstance(cause, httpx2.TransportError):
            return failures.describe_network(cause, endpoint)
    return failures.not_a_hub(endpoint, f"{type(error).__name__}: {error}"[:200])
