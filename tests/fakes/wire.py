"""Frontends that say exactly what they are told to, right or wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TypeVar

import zmq

from shammah.bus import codec
from shammah.bus.client import new_request_id
from shammah.bus.endpoints import Endpoints
from shammah.bus.messages import (
    PROTOCOL,
    ChatMessage,
    ClientInfo,
    Event,
    Failed,
    Generate,
    Hello,
    Message,
    Ping,
    Pong,
    Request,
    Welcome,
)
from tests.fakes.sandbox import LIMIT_S

Kind = TypeVar("Kind", bound=Message)


class RawFrontend:
    """A DEALER with nothing around it: no pings, no patience, any bytes."""

    def __init__(self, endpoints: Endpoints, role: str = "inference") -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.reconnect_ivl = 20
        self._socket.connect(endpoints.requests(role))

    def send(self, message: Request) -> str:
        """Returns the request id."""
        self.send_frames(codec.encode(message))
        return message.request_id

    def send_frames(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def receive(self, limit: float = LIMIT_S) -> Message:
        if not self._socket.poll(limit * 1000):
            raise TimeoutError(f"no reply within {limit:g} s")
        return codec.decode(self._socket.recv())

    def expect(self, kind: type[Kind]) -> Kind:
        """The next reply of ``kind``; those before it are dropped."""
        while not isinstance(reply := self.receive(), kind):
            pass
        return reply

    def wait_for(self, kind: type[Kind], limit: float = LIMIT_S) -> Kind:
        """Like `expect`, but the lease is renewed meanwhile."""
        deadline, late = time.monotonic() + limit, False
        while not late:
            late = time.monotonic() > deadline
            self.send(Ping(new_request_id()))
            while self._socket.poll(1000):
                reply = codec.decode(self._socket.recv())
                if isinstance(reply, kind):
                    return reply
        raise TimeoutError(f"no {kind.__name__} within {limit:g} s")

    def attach(self) -> Welcome:
        client = ClientInfo("test", os.getpid(), "")
        self.send(Hello(new_request_id(), PROTOCOL, client))
        return self.expect(Welcome)

    def arrived(self, wait: float = 0.0) -> Iterator[Message]:
        """What has come and was not received yet; for the first of it ``wait`` seconds."""
        while self._socket.poll(wait * 1000):
            wait = 0.0
            yield codec.decode(self._socket.recv())

    def ping(self) -> Pong:
        self.send(Ping(new_request_id()))
        return self.expect(Pong)

    def ask(self, text: str) -> str:
        """Ask, and return the request id."""
        return self.send(Generate(new_request_id(), (ChatMessage("user", text),)))

    def refusal(self, *frames: bytes) -> Failed:
        """What the worker says to these frames."""
        self.send_frames(*frames)
        return self.expect(Failed)

    def close(self, linger_ms: int = 0) -> None:
        self._context.destroy(linger=linger_ms)


class Listener:
    """A subscriber to a worker's events, which hears all that come after it was made."""

    def __init__(self, endpoints: Endpoints, role: str = "inference") -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.subscribe(b"")
        self._socket.reconnect_ivl = 20
        self._socket.connect(endpoints.events(role))
        self._first: Event | None = self._receive(LIMIT_S)  # the worker knows of it

    def next(self, limit: float = LIMIT_S) -> Event:
        first, self._first = self._first, None
        return first or self._receive(limit)

    def _receive(self, limit: float) -> Event:
        if not self._socket.poll(limit * 1000):
            raise TimeoutError(f"no event within {limit:g} s")
        event = codec.decode(self._socket.recv())
        assert isinstance(event, Event)
        return event

    def until(self, what: str) -> list[Event]:
        """The events up to and with the first that is a ``what``."""
        events = [self.next()]
        while events[-1].what != what:
            events.append(self.next())
        return events

    def close(self) -> None:
        self._context.destroy(linger=0)
