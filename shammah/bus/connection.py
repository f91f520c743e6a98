"""The sockets of one frontend to one worker. One thread owns them."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Iterable, Iterator

import zmq

from shammah.bus import codec
from shammah.bus.endpoints import SOCKET_MAX_BYTES, Endpoints
from shammah.bus.messages import Event, Reply

RECONNECT_MS = 20
RECONNECT_MAX_MS = 100
"""How late the first event of a new worker may be noticed."""

LINGER_MS = 1000
"""For the last message (Detach) to go out on a busy machine."""

CALM_S = 0.05
"""Pause between two looks at the events. They are whole snapshots and for eyes: a thread that woke
for each of a thousand a second would take the interpreter from the keyboard."""

_UP = zmq.Event.HANDSHAKE_SUCCEEDED
_DOWN = zmq.Event.DISCONNECTED


class Connection:
    """Reconnects automatically; `changes` reports each connection made or lost.

    Args:
        wake_fd: `wait` also waits for this.
        every_event: yield each event, not only the last of those that have arrived.
    """

    def __init__(self, endpoints: Endpoints, role: str, wake_fd: int, *, every_event: bool) -> None:
        self._up = False
        self._every_event = every_event
        self._calm_until = 0.0
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
        self._all, self._calm = zmq.Poller(), zmq.Poller()
        for source in (wake_fd, self._requests, self._monitor):
            self._all.register(source, zmq.POLLIN)
            self._calm.register(source, zmq.POLLIN)
        self._all.register(self._events, zmq.POLLIN)

    def wait(self, timeout_ms: int) -> dict[object, int]:
        """Until something arrives here or ``wake_fd`` is readable: what it is."""
        calm_ms = round(1000 * (self._calm_until - time.monotonic()))
        if calm_ms > 0:
            return dict(self._calm.poll(min(timeout_ms, calm_ms)))
        return dict(self._all.poll(timeout_ms))

    def send(self, frame: bytes) -> None:
        """Send, if there is a worker to send to.

        Nothing is queued for a missing one: an old question must not reach the next worker. Not
        by ZMQ_IMMEDIATE, which would also drop a worker's last, unread words when it disconnects.
        """
        if self._up:
            with contextlib.suppress(zmq.Again):
                self._requests.send(frame, zmq.NOBLOCK)

    def replies(self) -> Iterator[Reply]:
        """What has arrived on the request socket."""
        yield from _decoded(_received(self._requests))

    def events(self, *, at_once: bool = False) -> Iterator[Event]:
        """The events that have arrived; within `CALM_S` of others only if ``at_once``."""
        now = time.monotonic()
        if now < self._calm_until and not at_once:
            return
        frames = list(_received(self._events))
        if frames:
            self._calm_until = now + CALM_S
        for message in _decoded(frames if self._every_event else frames[-1:]):
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

    def close(self, *, at_once: bool) -> None:
        """Close the sockets; unless ``at_once`` what was sent last may still go out."""
        linger = 0 if at_once else LINGER_MS
        self._requests.disable_monitor()
        self._monitor.close(linger=0)
        self._requests.close(linger=linger)
        self._events.close(linger=linger)
        self._context.term()


def _received(source: zmq.Socket[bytes]) -> Iterator[bytes]:
    while True:
        try:
            yield source.recv(zmq.NOBLOCK)
        except zmq.Again:
            return


def _decoded(frames: Iterable[bytes]) -> Iterator[Reply]:
    for frame in frames:
        try:
            message = codec.decode(frame)
        except codec.ProtocolError:
            continue  # a newer worker's message
        if isinstance(message, Reply):
            yield message
