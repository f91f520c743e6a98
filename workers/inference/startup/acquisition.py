"""How a model that is not on this disk gets there: the download worker is asked for it.

The inference worker is a client on the bus like any other; it opens no connection to the Hub.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from shammah.bus.client import Peer, new_request_id
from shammah.bus.messages import Failed
from shammah.bus.transfers import Fetch, Fetched, FetchProgress, Transfer, Verified, VerifyModel
from shammah.errors import ShammahError
from shammah.settings.model import Settings
from shammah.supervision.download import FetchReply, FollowedFetch
from shammah.supervision.lifecycle import connect

log = logging.getLogger(__name__)

REPORT_S = 1.0
"""Between two reports: enough to see that it moves, and few enough to read."""

UNREACHABLE = "hub_unreachable"
"""The failure that may pass by itself."""


class FetchStream(Protocol):
    """See `shammah.supervision.download.FollowedFetch`."""

    def __iter__(self) -> Iterator[FetchReply]: ...

    def leave(self) -> None: ...


class ModelSource(Protocol):
    """Where models come from."""

    def fetch(self, model_id: str) -> FetchStream:
        """Begin to make a model whole."""

    def repair(self, model_id: str) -> None:
        """Check every byte of a model and download what is bad again.

        Raises:
            ShammahError: it could not be repaired.
        """


class DownloadWorker:
    """The download worker as a source, started if need be.

    Args:
        settings: whose download worker.
        environ: of this process, before libraries changed it.
    """

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._environ = dict(environ)

    def fetch(self, model_id: str) -> FollowedFetch:
        return FollowedFetch(self._connect, Fetch(new_request_id(), model_id, urgent=True))

    def repair(self, model_id: str) -> None:
        peer = self._connect()
        try:
            request = VerifyModel(new_request_id(), model_id, hashes=True, repair=True)
            *_, reply = peer.begin(request)
        finally:
            peer.close()
        if isinstance(reply, Failed):
            raise ShammahError(reply.code, reply.message, reply.hint)
        assert isinstance(reply, Verified)

    def _connect(self) -> Peer:
        return connect(self._settings, "download", "inference", self._environ, join=True)


class Acquisition:
    """One model on its way, on a thread of its own.

    Args:
        source: where from.
        model_id: which.
        report: how far it is, now and then; called on that thread, like the next two.
        missed: the Hub could not be reached, and it will be tried again.
        done: the end: the model's directory, or why there is none.
        pauses: seconds before each further attempt at a Hub that cannot be reached; when there
            are no more, that is the end.
    """

    def __init__(
        self,
        source: ModelSource,
        model_id: str,
        *,
        report: Callable[[Transfer], None],
        missed: Callable[[Failed], None] = lambda failure: None,
        done: Callable[[Path | Failed], None] = lambda result: None,
        pauses: Iterable[float] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._model_id = model_id
        self._report = report
        self._missed = missed
        self._done = done
        self._pauses = iter(pauses)
        self._clock = clock
        self._lock = threading.Lock()
        self._left = threading.Event()
        self._stream: FetchStream | None = None
        self._result: Path | Failed | None = None
        self._thread = threading.Thread(target=self._run, name="acquisition", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def leave(self) -> None:
        """Wait for it no longer; the download itself goes on."""
        with self._lock:
            self._left.set()
            if self._stream is not None:
                self._stream.leave()

    def result(self) -> Path | Failed:
        """The model's directory or why there is none; waits for the end."""
        self._thread.join()
        assert self._result is not None
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._acquire()
        except Exception as error:
            log.exception("the acquisition failed")
            why = f"Couldn't download {self._model_id}: {type(error).__name__}: {error}"
            self._result = Failed("internal", why, "See the inference worker's log.")
        log.info("%s: %s", self._model_id, self._result)
        self._done(self._result)

    def _acquire(self) -> Path | Failed:
        while True:
            result = self._attempt()
            if not isinstance(result, Failed) or result.code != UNREACHABLE:
                return result
            pause = next(self._pauses, None)
            if pause is None:
                return result
            self._missed(result)
            if self._left.wait(pause):
                return result

    def _attempt(self) -> Path | Failed:
        with self._lock:
            stream = self._stream = self._source.fetch(self._model_id)
            if self._left.is_set():
                stream.leave()
        reported = -REPORT_S
        for reply in stream:
            match reply:
                case FetchProgress(transfer=transfer):
                    if self._clock() - reported >= REPORT_S:
                        reported = self._clock()
                        self._report(transfer)
                case Fetched(directory=directory):
                    return Path(directory)
                case Failed():
                    return reply
        raise AssertionError("a fetch ends with Fetched or Failed")
