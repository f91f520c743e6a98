"""The two sockets of a worker, and the files by which frontends find them."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import zmq

from shammah.bus.endpoints import SOCKET_MAX_BYTES, Endpoints, refused

log = logging.getLogger(__name__)

UNREAD_REPLIES = 100_000
"""Replies (of about 100 bytes) that one frontend may be behind; beyond, it counts as gone."""

LINGER_MS = 200
"""Last replies get this long to reach the socket; libzmq's default is for ever."""


class Sockets:
    """``requests`` (ROUTER) and ``events`` (XPUB), bound.

    Raises:
        ShammahError: ``runtime_directory``.
    """

    def __init__(self, endpoints: Endpoints, role: str) -> None:
        self._context = zmq.Context()
        self._context.linger = LINGER_MS
        self.requests = self._context.socket(zmq.ROUTER)
        self.requests.router_mandatory = True  # otherwise a reply to nobody vanishes silently
        self.requests.router_handover = True  # a frontend that reconnects keeps its name
        self.requests.sndhwm = UNREAD_REPLIES
        self.events = self._context.socket(zmq.XPUB)
        self.events.xpub_verbose = True  # every new subscriber is seen, and gets the snapshot
        self._inodes: dict[str, int] = {}
        self._bound = (
            (self.requests, endpoints.requests(role)),
            (self.events, endpoints.events(role)),
        )
        for opened, endpoint in self._bound:
            opened.maxmsgsize = SOCKET_MAX_BYTES
            try:
                self._bind(opened, endpoint)
            except zmq.ZMQError as error:
                why = OSError(error.errno, os.strerror(error.errno or 0))
                raise refused(_path(endpoint), why) from error

    def restore(self) -> None:
        """Bind again where the socket's file was deleted or is another's: no new frontend could
        connect. Those that are connected stay so."""
        for opened, endpoint in self._bound:
            try:
                if _inode(endpoint) != self._inodes[endpoint]:
                    self._bind(opened, endpoint)
                    log.warning("bound %s again: its file was gone", endpoint)
            except (OSError, zmq.ZMQError) as error:
                log.warning("%s cannot be bound again: %s", endpoint, error)

    def _bind(self, opened: zmq.Socket[bytes], endpoint: str) -> None:
        opened.bind(endpoint)
        self._inodes[endpoint] = _inode(endpoint)

    def close(self) -> None:
        """Send what was said last, and close."""
        self.requests.close()
        self.events.close()
        self._context.term()


def _inode(endpoint: str) -> int:
    """0 where there is no file. A bound socket keeps its inode, so none is used twice."""
    try:
        return _path(endpoint).stat().st_ino
    except FileNotFoundError:
        return 0


def _path(endpoint: str) -> Path:
    return Path(endpoint.removeprefix("ipc://"))
