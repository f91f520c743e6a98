"""The real SDK and transport against sockets that do not answer as they should."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from shammah.bus.messages import ChatMessage, Done, Failed, Generate, Retrying, Token
from shammah.settings.load import home_directory
from shammah.settings.model import CloudSettings, Settings
from workers.cloud import claude
from workers.cloud.claude import Claude

pytestmark = pytest.mark.timeout(400)

LIMIT_S = 60.0
FOR_EVER_S = 1000.0
"""What a test waits for that long, it does not get."""
QUESTION = Generate("r1", (ChatMessage("user", "Hello?"),))


def settings(base_url: str) -> Settings:
    cloud = CloudSettings(api_key="sk-test", base_url=base_url)
    return Settings(home_directory(os.environ), cloud=cloud)


def only_retries(reply: Token | Retrying) -> None:
    assert isinstance(reply, Retrying)


async def no_wait(_seconds: float) -> None:
    """Between two attempts."""


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme in ("http", "https", "all"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme}_proxy".upper(), raising=False)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claude, "CONNECT_TIMEOUT_S", FOR_EVER_S)
    monkeypatch.setattr(claude, "READ_TIMEOUT_S", FOR_EVER_S)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A port where connections come about but nobody reads them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(LIMIT_S)
        yield server


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port whose queue is full, so that a connection is neither made nor refused."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port: int = server.getsockname()[1]
        for _ in range(8):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
            if client.getsockname()[1] in _connecting(port):
                break
        else:
            pytest.fail("the queue of a listening socket does not fill up on this system")
        yield port


def _connecting(port: int) -> list[int]:
    """Own ports of this process's connections to ``port`` that are still being made."""
    return [
        c.laddr.port
        for c in psutil.Process().net_connections("tcp4")
        if c.status == psutil.CONN_SYN_SENT and c.raddr.port == port
    ]


def answer(base_url: str) -> Done | Failed:
    async def run() -> Done | Failed:
        client = Claude(settings(base_url), sleep=no_wait)
        try:
            async with asyncio.timeout(LIMIT_S):
                return await client.answer(QUESTION, only_retries, time.monotonic())
        finally:
            await client.close()

    return asyncio.run(run())


def cancel_when(
    base_url: str, reached: Callable[[], object], afterwards: Callable[[], object]
) -> None:
    """Cancel an answer once the blocking ``reached`` has returned, and call ``afterwards``.
    Nothing else would end it."""

    async def run() -> None:
        client = Claude(settings(base_url), sleep=no_wait)
        task = asyncio.create_task(client.answer(QUESTION, only_retries, time.monotonic()))
        await asyncio.to_thread(reached)
        task.cancel()
        async with asyncio.timeout(LIMIT_S):
            outcome = await task
        assert isinstance(outcome, Done)
        assert outcome.finish_reason == "cancelled"
        # While the client and its loop live: the cancel itself must have closed everything.
        await asyncio.to_thread(afterwards)
        await client.close()

    asyncio.run(run())


def test_a_cancel_while_connecting(full_port: int) -> None:
    before = _connecting(full_port)

    def connecting() -> None:
        deadline_s = time.monotonic() + LIMIT_S
        while _connecting(full_port) == before:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)

    def abandoned() -> None:
        assert _connecting(full_port) == before

    cancel_when(f"http://127.0.0.1:{full_port}", connecting, abandoned)


def test_a_connection_that_does_not_come_about(
    full_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claude, "CONNECT_TIMEOUT_S", 0.2)
    outcome = answer(f"http://127.0.0.1:{full_port}")
    assert isinstance(outcome, Failed)
    assert outcome.code == "cloud_timeout"
    assert "could not be reached in time" in outcome.message


@pytest.mark.parametrize(
    ("scheme", "until"), [("http", b'"stream":true'), ("https", b"\x16")], ids=["headers", "TLS"]
)
def test_a_cancel_while_waiting_closes_the_connection(
    listener: socket.socket, scheme: str, until: bytes
) -> None:
    """For the headers of an answer, and in the middle of a handshake (after the hello)."""
    accepted: list[socket.socket] = []

    def asked() -> None:
        connection, _ = listener.accept()
        connection.settimeout(LIMIT_S)
        accepted.append(connection)
        received = b""
        while until not in received:
            received += connection.recv(65536)

    def closed() -> None:
        with accepted[0] as connection, contextlib.suppress(ConnectionResetError):
            assert connection.recv(65536) == b""

    port = listener.getsockname()[1]
    cancel_when(f"{scheme}://127.0.0.1:{port}", asked, closed)


def test_a_port_where_nothing_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound, but not listening
        outcome = answer(f"http://127.0.0.1:{probe.getsockname()[1]}")
    assert isinstance(outcome, Failed)
    assert outcome.code == "cloud_unreachable"
    assert "nothing is listening there" in outcome.message


@pytest.mark.parametrize("reply", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_https_to_a_server_without_it(listener: socket.socket, reply: bytes) -> None:
    outcome = _answer_with(listener, "https", reply)
    assert isinstance(outcome, Failed)
    assert outcome.code == "cloud_tls"


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 200 OK\r\n", b"220 mail.example ESMTP\r\n"])
def test_a_server_that_hangs_up_or_speaks_something_else(
    listener: socket.socket, reply: bytes
) -> None:
    outcome = _answer_with(listener, "http", reply)
    assert isinstance(outcome, Failed)
    assert outcome.code == "cloud_interrupted"


def _answer_with(listener: socket.socket, scheme: str, reply: bytes) -> Done | Failed:
    """The outcome of asking a server that sends ``reply`` to whatever comes and hangs up."""

    def serve() -> None:
        with contextlib.suppress(OSError):  # closed at the end
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(reply)

    server = threading.Thread(target=serve)
    server.start()
    outcome = answer(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}")
    listener.shutdown(socket.SHUT_RDWR)
    server.join(LIMIT_S)
    return outcome
