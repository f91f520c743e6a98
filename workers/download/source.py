"""Where the bytes of one file come from; makes sure that they are about that file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2

from shammah.errors import ShammahError
from workers.download import failures
from workers.download.failures import TemporaryError
from workers.listing import RemoteFile, RepositoryListing

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_NETWORK = (
    httpx2.TimeoutException,
    httpx2.NetworkError,
    httpx2.RemoteProtocolError,
    httpx2.ProxyError,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """Bytes from ``offset`` on. ``whole``: the server ignored which ones were asked for."""

    offset: int
    whole: bool
    pieces: Iterator[bytes]


class Source:
    """One file at one commit.

    Args:
        client: follows redirects.
        url: the Hub's address of the file.
        file: what must come.
        listing: of the repository: its name and the commit.
        headers: for the Hub, with the token if there is one.
        wall: seconds since 1970, for dates in Retry-After.
    """

    def __init__(
        self,
        client: httpx2.Client,
        url: str,
        file: RemoteFile,
        listing: RepositoryListing,
        headers: Mapping[str, str],
        wall: Callable[[], float],
    ) -> None:
        self._client = client
        self._url = httpx2.URL(url)
        self._file = file
        self._model_id = listing.model_id
        self._revision = listing.revision
        self._headers = {**headers, "accept-encoding": "identity"}
        self._wall = wall
        self._location: httpx2.URL | None = None

    @contextmanager
    def open(self, begin: int, end: int) -> Iterator[Answer]:
        """Ask for the bytes from ``begin`` up to ``end``.

        Raises:
            TemporaryError: also while the pieces are read; another attempt may succeed.
            ShammahError: it would be in vain.
        """
        partial = (begin, end) != (0, self._file.size)
        location = self._location  # threads share it
        url = location or self._url
        headers = dict(self._headers)
        if partial:
            headers["range"] = f"bytes={begin}-{end - 1}"
        if failures.origin(url) != failures.origin(self._url):
            headers.pop("authorization", None)  # the token is for the Hub alone
        try:
            with self._client.stream("GET", url, headers=headers) as response:
                self._check_status(response, location)
                if location is None:
                    self._check_identity([*response.history, response])
                offset = self._check_extent(response, begin, end)
                if response.history:
                    self._location = response.url
                whole = partial and response.status_code == 200
                yield Answer(offset, whole, response.iter_raw())
        except _NETWORK as error:
            raise TemporaryError(failures.describe_network(error, url)) from error
        except httpx2.TooManyRedirects as error:
            raise failures.not_a_hub(str(url), "it redirects in a circle") from error

    def _check_status(self, response: httpx2.Response, location: httpx2.URL | None) -> None:
        status = response.status_code
        if status in (200, 206):
            return
        failure = failures.describe_response(response, self._model_id, self._file.path)
        if failures.is_temporary(status):
            wait_s = failures.retry_after(response.headers, self._wall())
            raise TemporaryError(failure, wait_s)
        if location is not None:
            # Signed addresses expire: the Hub gives another one.
            self._location = None
            raise TemporaryError(failure)
        if status == 416:
            told = response.headers.get("content-range", "fewer")
            raise failures.size_mismatch(self._file.path, self._file.size, told)
        raise failure

    def _check_identity(self, answers: list[httpx2.Response]) -> None:
        """A branch can move and a mirror can be stale: bytes of two contents must not mix."""
        path = self._file.path
        linked = (answer.headers.get("x-linked-etag") for answer in answers)
        own = (answer.headers.get("etag") for answer in answers)
        told = next((etag for etag in (*linked, *own) if etag is not None), None)
        etag = (told or "").removeprefix("W/").strip('"')
        if not etag:
            raise self._changed(f"sent no ETag for {path}, so it cannot be cached")
        if etag != self._file.etag:
            raise self._changed(f"offers {path} with the ETag {etag[:12]}…, not the one it listed")
        commits = (answer.headers.get("x-repo-commit") for answer in answers)
        commit = next((commit for commit in commits if commit), self._revision)
        if commit != self._revision:
            raise self._changed(f"offers {path} of another commit ({commit[:12]}…)")

    def _changed(self, why: str) -> ShammahError:
        hint = "Fetch the model again; if that does not help, check HF_ENDPOINT."
        return ShammahError("hub_error", f"{failures.origin(self._url)} {why}.", hint)

    def _check_extent(self, response: httpx2.Response, begin: int, end: int) -> int:
        """Where the body begins."""
        size = self._file.size
        if response.status_code == 200:
            length = response.headers.get("content-length", str(size))
            if length != str(size):
                raise failures.size_mismatch(self._file.path, size, length)
            return 0
        told = response.headers.get("content-range", "")
        match = _CONTENT_RANGE.fullmatch(told)
        if match and match[3] not in ("*", str(size)):
            raise failures.size_mismatch(self._file.path, size, match[3])
        if not match or int(match[1]) != begin or int(match[2]) >= end:
            why = f"asked for bytes {begin}-{end - 1}, it sent {told!r}"
            raise failures.not_a_hub(str(response.url), why)
        return begin
