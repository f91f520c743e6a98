"""A worker that says exactly what a test wants."""

from __future__ import annotations

from typing import Any

import zmq

from shammah.bus import codec
from shammah.bus.endpoints import RoleLock
from shammah.bus.messages import Event, Hello, Identity, Ready, Reply, Status, Welcome
from tests.fakes.sandbox import LIMIT_S, Sandbox

READY = Status(Ready("starter"))


def event(seq: int, status: Status = READY, run_id: str = "run") -> Event:
    return Event("inference", run_id, seq, 0.0, 0.0, "state", status)


class ScriptedWorker:
    """The worker's end of both sockets, in the test's own hands."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._endpoints = sandbox.endpoints
        self._context = zmq.Context()
        self.lock = RoleLock(sandbox.endpoints.lock("inference"))
        assert self.lock.acquire()
        self._requests = self._context.socket(zmq.ROUTER)
        self._requests.bind(sandbox.endpoints.requests("inference"))
        self._events = self._context.socket(zmq.XPUB)
        self._events.bind(sandbox.endpoints.events("inference"))
        self.peer = b""

    def expect(self, kind: type[Any]) -> Any:
        """The next request of ``kind``; others before it are dropped."""
        while True:
            if not self._requests.poll(LIMIT_S * 1000):
                raise TimeoutError(f"no {kind.__name__}")
            self.peer, frame = self._requests.recv_multipart()
            request = codec.decode(frame)
            if isinstance(request, kind):
                return request

    def hears(self) -> bool:
        return bool(self._requests.poll(0))

    def reply(self, *replies: Reply) -> None:
        for reply in replies:
            self.reply_bytes(codec.encode(reply))

    def reply_bytes(self, frame: bytes) -> None:
        self._requests.send_multipart([self.peer, frame])

    def publish(self, *events: Event) -> None:
        for one in events:
            self.publish_bytes(codec.encode(one))

    def publish_bytes(self, frame: bytes) -> None:
        self._events.send(frame)

    def wait_subscriber(self) -> None:
        assert self._events.poll(LIMIT_S * 1000)
        self._events.recv()

    def welcome(self, seq: int = 1) -> None:
        hello = self.expect(Hello)
        identity = Identity("inference", "starter", "d")
        self.reply(Welcome(hello.request_id, 1, "0", "run", 1, identity, event(seq)))

    def close(self) -> None:
        self._context.destroy(linger=0)
        self.lock.release()
