"""What a worker does for a token: send it, and no more."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import zmq

from shammah.bus.endpoints import RoleLock
from shammah.bus.messages import Identity, Token
from tests.fakes.sandbox import Sandbox
from workers.host import TICK_MS, Host
from workers.service import Outlet


class Idle:
    def run(self, outlet: Outlet) -> None: ...
    def submit(self, request: object, client: str) -> None: ...
    def cancel(self, request_id: str) -> None: ...
    def stop(self) -> None: ...


class Counted(Host):
    """Turned by hand; ``looks`` counts how often it looked at everything."""

    looks = 0

    def _drain_requests(self) -> None:
        self.looks += 1
        super()._drain_requests()


@pytest.fixture
def host(sandbox: Sandbox) -> Iterator[Counted]:
    lock = RoleLock(sandbox.endpoints.lock("inference"))
    assert lock.acquire()
    host = Counted(Idle(), Identity("inference", "m", "d"), sandbox.endpoints, lock, 60.0)
    yield host
    host._stopping = "the test is over"
    host._sockets.close()
    host._wake_in.close()
    host._wake_out.close()
    lock.release()


@pytest.fixture
def poller(host: Counted) -> zmq.Poller:
    poller = zmq.Poller()
    for source in (host._requests, host._events, host._wake_out.fileno()):
        poller.register(source, zmq.POLLIN)
    return poller


def test_a_token_is_sent_without_a_look_at_everything_else(
    host: Counted, poller: zmq.Poller
) -> None:
    host._due = float("inf")
    for index in range(20):
        host._outlet.reply(Token("a", index, "x"))
        host._turn(poller)
        assert host._outlet.queue.empty()
    assert host.looks == 0


def test_tokens_without_end_keep_nobody_from_being_looked_at(
    host: Counted, poller: zmq.Poller
) -> None:
    host._outlet.reply(Token("a", 0, "x"))
    host._turn(poller)
    assert host.looks == 1  # for the first time
    before = host._due
    host._due = 0.0  # the time has come
    host._outlet.reply(Token("a", 1, "x"))
    host._turn(poller)
    assert host.looks == 2
    assert host._due >= before > TICK_MS / 1000


def test_a_signal_among_tokens_ends_it(host: Counted, poller: zmq.Poller) -> None:
    host._due = float("inf")
    host._on_signal(signal.SIGTERM, None)
    host._outlet.reply(Token("a", 0, "x"))
    host._turn(poller)
    assert host._stopping == "signal SIGTERM"
