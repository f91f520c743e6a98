"""What a worker does for a token: send it, and no more."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from shammah.bus.endpoints import RoleLock
from shammah.bus.messages import Generate, Identity, Stop, Stopping, Token
from tests.fakes.sandbox import LIMIT_S, Sandbox
from tests.fakes.wire import RawFrontend
from workers import host
from workers.host import Host
from workers.service import Outlet

NEVER_MS = 10_000_000
TOKENS = 20
ENOUGH = 50_000


class Answering:
    """A service that answers one frontend as ``act`` says, and is stopped by it then."""

    def __init__(self, sandbox: Sandbox, act: Callable[[Answering], None], signalled: bool) -> None:
        self._sandbox, self._act, self._signalled = sandbox, act, signalled
        self._submitted = threading.Event()
        self.looks = 0
        self.failure: BaseException | None = None

    def look(self) -> None:
        """Called by the host whenever it has looked at everything."""
        self.looks += 1
        if self._signalled and self._submitted.is_set():
            signal.raise_signal(signal.SIGTERM)

    def run(self, outlet: Outlet) -> None:
        self.outlet = outlet
        self.frontend = RawFrontend(self._sandbox.endpoints)
        try:
            self.frontend.attach()
            self.name = self.frontend.ask("hello")
            assert self._submitted.wait(LIMIT_S)
            self._act(self)
        except BaseException as error:
            self.failure = error
        finally:
            self.frontend.send(Stop("stop"))
            self.frontend.close(linger_ms=1000)

    def send(self, index: int) -> None:
        self.outlet.reply(Token(self.name, index, "x"))

    def token(self) -> Token:
        return self.frontend.expect(Token)

    def submit(self, request: Generate, client: str) -> None:
        self._submitted.set()

    def cancel(self, request_id: str) -> None: ...
    def stop(self) -> None: ...


Serve = Callable[..., None]


@pytest.fixture
def serve(sandbox: Sandbox) -> Iterator[Serve]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    lock = RoleLock(sandbox.endpoints.lock("inference"))
    assert lock.acquire()

    def run(act: Callable[[Answering], None], *, signalled: bool = False) -> None:
        service = Answering(sandbox, act, signalled)
        identity = Identity("inference", "m", "d")
        Host(service, identity, sandbox.endpoints, lock, 60.0, on_tick=service.look).run()
        if service.failure is not None:
            raise service.failure

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)
    lock.release()


def test_a_token_is_sent_without_a_look_at_everything_else(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "TICK_MS", NEVER_MS)
    looked: list[int] = []

    def act(service: Answering) -> None:
        for index in range(TOKENS):
            service.send(index)
            assert service.token().index == index
            looked.append(service.looks)

    serve(act)
    assert looked[-1] - looked[0] <= 2  # what else woke it, not one for each token


def test_tokens_without_end_keep_nobody_from_being_looked_at(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "TICK_MS", 50)

    def act(service: Answering) -> None:
        begun = service.looks
        for index in range(ENOUGH):
            service.send(index)
            service.token()
            if service.looks >= begun + 3:
                return
        raise AssertionError("it has not looked")

    serve(act)


def test_a_signal_among_tokens_ends_it(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its next look at everything would be hours away."""
    monkeypatch.setattr(host, "TICK_MS", NEVER_MS)

    def act(service: Answering) -> None:
        for index in range(ENOUGH):
            service.send(index)
            if isinstance(service.frontend.receive(), Stopping):
                return
        raise AssertionError("it goes on")

    serve(act, signalled=True)
