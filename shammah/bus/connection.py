"""The sockets of one frontend to one worker. One thread owns them."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator

import zmq

from shammah.bus import codec, messages
from shammah.bus.endpoints import SOCKET_MAX_BYTES, Endpoints
from shammah.bus.messages import Event, Reply

RECONNECT_MS = 20
RECONNECT_MAX_MS = 100
"""A worker binds its sockets when it likes; this is how late its first event may be noticed."""

LINGER_MS = 1000
"""For the last message (Detach) to go out on a busy machine; usually it takes none of this."""

_UP = zmq.Event.HANDSHAKE_SUCCEEDED
_DOWN = zmq.Event.DISCONNECTED


class Connection:
    """Connects by itself, again and again; `changes` tells when it did or was lost."""

    def __init__(self, endpoints: Endpoints, role: str) -> None:
        self._up = False
        self._context = zmq.Context()
        self._context.linger = LINGER_MS
        self._requests = self._context.socket(zmq.DEALER)
        self._requests.identity = b"c" + os.urandom(8)  # libzmq reserves a leading zero
        self._events = self._context.socket(zmq.SUB)
        self._events.subscribe(b"")
        for opened in (self._requests, self._events):
            opened.maxmsgsize = SOCKET_MAX_BYTES
            opened.reconnect_ivl = RECONNECT_MS
            opened.reconnect_ivl_max = RECONNECT_MAX_MS
        self._monitor = self._requests.get_monitor_socket(_UP | _DOWN)
        self._requests.connect(endpoints.requests(role))
        self._events.connect(endpoints.events(role))

    def poller(self) -> zmq.Poller:
        """A poller that wakes for everything that can arrive here."""
        poller = zmq.Poller()
        for source in (self._requests, self._events, self._monitor):
            poller.register(source, zmq.POLLIN)
        return poller

    def send(self, frame: bytes) -> None:
        """Send, if there is a worker to send to.

        Nothing is queued for one that is not there: an old question must not reach the next
        worker of the same name. Not by ZMQ_IMMEDIATE, which would also throw away what a
        worker said last, arrived but not read yet, when it disconnects.
        """
        if self._up:
            with contextlib.suppress(zmq.Again):
                self._requests.send(frame, zmq.NOBLOCK)

    def replies(self) -> Iterator[Reply]:
        """What has arrived on the request socket."""
        yield from _decoded(self._requests)

    def events(self) -> Iterator[Event]:
        """The events that have arrived."""
        for message in _decoded(self._events):
            if isinstance(message, Event):
                yield message

    def changes(self) -> Iterator[bool]:
        """True for each connection made, false for each lost, since the last call."""
        while True:
            try:
                header, _endpoint = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            # zmq.utils.monitor would parse this, but imports asyncio (60 ms) to do so.
            (event,) = struct.unpack_from("=H", header)
            if event in (_UP, _DOWN):
                self._up = event == _UP
                yield self._up

    def close(self) -> None:
        """Close the sockets; what was sent last may still go out."""
        self._requests.disable_monitor()
        self._monitor.close(linger=0)
        self._requests.close()
        self._events.close()
        self._context.term()


def _decoded(source: zmq.Socket[bytes]) -> Iterator[Reply]:
    while True:
        try:
            frame = source.recv(zmq.NOBLOCK)
        except zmq.Again:
            return
        try:
            message = codec.decode(frame)
        except codec.ProtocolError:
            continue  # a newer worker's message that we do not know
        if isinstance(message, messages.REPLIES):
            yield message
