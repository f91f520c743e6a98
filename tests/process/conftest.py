"""Real processes on a real bus. Whatever a test starts here is ended after it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator

import psutil
import pytest

from shammah.bus.client import Peer
from shammah.bus.messages import ClientInfo, Event, Ready
from shammah.supervision import lifecycle
from shammah.supervision.lifecycle import WorkerSpec
from tests.fakes import frontend
from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import LIMIT_S, Sandbox, until
from tests.fakes.terminal import Held, Record
from tests.fakes.wire import Listener, RawFrontend

StartEcho = Callable[..., EchoProcess]
Connect = Callable[..., Peer]
Dial = Callable[..., RawFrontend]


@pytest.fixture(autouse=True)
def workers_end(sandbox: Sandbox) -> Iterator[None]:
    """End the workers that frontends have started; these outlive their starters on purpose.

    Again and again: one that was only just started still has its starter's command line.
    """
    yield
    with contextlib.suppress(TimeoutError):  # whatever else is there is a leak, and told as one
        until(lambda: not _end_workers(sandbox), "no process is left", 5)
    until(lambda: not sandbox.holders(), "the locks are free")


def _end_workers(sandbox: Sandbox) -> list[psutil.Process]:
    """Every process there was, of which the workers have been killed."""
    found = sandbox.processes()
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            if not {"workers", frontend.ECHO}.isdisjoint(process.cmdline()):
                process.kill()
    return found


@pytest.fixture(autouse=True)
def patient_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of a busy machine ends by the first rung, too, if it is the last that is needed."""
    monkeypatch.setattr(lifecycle, "STOP_S", LIMIT_S)


@pytest.fixture
def start_echo(sandbox: Sandbox) -> Iterator[StartEcho]:
    """Starts a stand-in worker and waits until it is up."""
    started: list[EchoProcess] = []

    def start(*options: str, role: str = "inference", model: str = "starter") -> EchoProcess:
        echo = EchoProcess(sandbox, role, model, *options)
        started.append(echo)
        return echo.wait_up()

    yield start
    for echo in started:
        echo.kill()


@pytest.fixture
def record(sandbox: Sandbox) -> Record:
    """What a stand-in is asked that was started to write it there."""
    return Record(sandbox.root / "record")


@pytest.fixture
def held(sandbox: Sandbox) -> Held:
    return Held(sandbox.root / "on")


@pytest.fixture
def echo(start_echo: StartEcho, record: Record) -> EchoProcess:
    """A stand-in that is ready, and writes down what it is asked."""
    worker = start_echo("--record", str(record.path), "--delay-ms", "10")
    until(lambda: isinstance(worker.status().status.state, Ready), "ready")
    return worker


@pytest.fixture
def connect(sandbox: Sandbox) -> Iterator[Connect]:
    """Makes attached frontends, as the REPL has them; ``wait=False``: perhaps not yet."""
    peers: list[Peer] = []

    def make(
        role: str = "inference",
        *,
        program: str = "test",
        wait: bool = True,
        on_change: Callable[[Event | None], None] = lambda event: None,
    ) -> Peer:
        client = ClientInfo(program, os.getpid())
        peers.append(Peer(sandbox.endpoints, role, client, on_change))
        if wait:
            assert peers[-1].wait_welcome(LIMIT_S), "no welcome"
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


@pytest.fixture
def dial(sandbox: Sandbox) -> Iterator[Dial]:
    """Makes raw frontends."""
    made: list[RawFrontend] = []

    def make(role: str = "inference") -> RawFrontend:
        made.append(RawFrontend(sandbox.endpoints, role))
        return made[-1]

    yield make
    for raw in made:
        raw.close()


@pytest.fixture
def listen(sandbox: Sandbox) -> Iterator[Callable[[], Listener]]:
    """Makes subscribers."""
    made: list[Listener] = []

    def make() -> Listener:
        made.append(Listener(sandbox.endpoints))
        return made[-1]

    yield make
    for listener in made:
        listener.close()


@pytest.fixture
def echo_spawns(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let frontends inside this process start stand-ins, and end these after the test."""
    children: list[subprocess.Popen[bytes]] = []
    spawn = lifecycle.spawn

    def remember(spec: WorkerSpec) -> subprocess.Popen[bytes]:
        children.append(spawn(spec))
        return children[-1]

    monkeypatch.setattr(lifecycle, "worker_command", frontend.echo_command)
    monkeypatch.setattr(lifecycle, "spawn", remember)
    yield
    # One that is still attaching may be about to start a worker.
    until(
        lambda: not [t for t in threading.enumerate() if t.name.startswith("attach-")],
        "nobody attaches any more",
    )
    for child in children:
        child.kill()
        child.wait()
