"""What people should read from the download worker, each sentence once."""

from __future__ import annotations

import threading
from collections.abc import Callable

from shammah.bus.client import Peer
from shammah.bus.endpoints import Endpoints
from shammah.bus.messages import Downloading, Event, Ready, State
from shammah.bus.transfers import Transfer, Transferring
from shammah.terminal.wording import download_under_way


class DownloadNotices:
    """Listens once the local model is being downloaded. Holds no lease and starts nothing.

    ``transfer`` is the latest report about the model.

    Args:
        endpoints: where the workers' sockets are.
        put: called with each sentence, from other threads.
    """

    def __init__(self, endpoints: Endpoints, put: Callable[[str], None]) -> None:
        self.transfer: Transfer | None = None
        self._endpoints = endpoints
        self._put = put
        self._said: set[str] = set()
        self._model = ""
        self._peer: Peer | None = None
        self._lock = threading.Lock()

    def follow(self, state: State | None) -> None:
        """Note that the local model is in ``state`` now. Any thread."""
        if isinstance(state, Ready) and state.note:
            self._say(state.note)
        download = download_under_way(state)
        with self._lock:
            if download is not None and self._peer is None:
                self._begin(download)

    def close(self) -> None:
        """Stop listening."""
        if self._peer is not None:
            self._peer.close()

    def _begin(self, download: Downloading) -> None:
        self._model = download.model
        self._peer = Peer(self._endpoints, "download", None, self._on_event)

    def _on_event(self, event: Event | None) -> None:
        if event is None or not isinstance(event.status.state, Transferring):
            return
        for transfer in event.status.state.transfers:
            if transfer.model == self._model:
                self.transfer = transfer
                for notice in transfer.notices:
                    self._say(f"{transfer.model}: {notice}")

    def _say(self, text: str) -> None:
        with self._lock:
            if text in self._said:
                return
            self._said.add(text)
        self._put(text)
