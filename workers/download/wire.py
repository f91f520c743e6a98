"""The HTTP connections of one download, which another thread can cut."""

from __future__ import annotations

import contextlib
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Any

import httpcore2
import httpx2

from workers import network
from workers.download.limits import Limits

KEEP_S = 30.0
"""An idle connection is kept this long for the next request."""

# Its reads of 64 KiB take half again as much processor time for each byte.
httpcore2.HTTP11Connection.READ_NUM_BYTES = 1024**2


class Wire:
    """A client whose every wait has an end: a time-out, or `cut`.

    ``let_go`` tells whether connections made from now on should not live either.
    """

    def __init__(self, limits: Limits, let_go: Callable[[], bool]) -> None:
        self._let_go = let_go
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()
        timeout = httpx2.Timeout(limits.stall_s, connect=limits.connect_s)
        pool = httpx2.Limits(
            max_connections=limits.connections,
            max_keepalive_connections=limits.connections,
            keepalive_expiry=KEEP_S,
        )
        self.client = httpx2.Client(
            timeout=timeout,
            limits=pool,
            follow_redirects=True,
            mounts=network.mounts(),
            verify=network.ssl_context(),
            event_hooks={"request": [self._watch]},
        )

    def cut(self) -> None:
        """Wake every thread that waits for bytes, with an error.

        ``let_go`` must be true by then, for as long as new connections are to fail too. Only
        one that is just being made is waited for (`Limits.connect_s`).
        """
        with self._lock:
            sockets = list(self._sockets)
        for opened in sockets:
            _shut(opened)

    def close(self) -> None:
        """Close every connection. Nobody may use the wire any more."""
        self.client.close()

    def _watch(self, request: httpx2.Request) -> None:
        request.extensions["trace"] = self._trace

    def _trace(self, name: str, info: dict[str, Any]) -> None:
        if name.endswith(("connect_tcp.complete", "start_tls.complete")):
            opened = info["return_value"].get_extra_info("socket")
            with self._lock:
                self._sockets.add(opened)
            if self._let_go():  # `cut` may have come just before
                _shut(opened)


def _shut(opened: socket.socket) -> None:
    # Not opened.shutdown: a TLS socket would forget its encryption under the reader.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(opened, socket.SHUT_RDWR)
