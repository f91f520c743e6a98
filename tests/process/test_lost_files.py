"""A worker whose files in the runtime directory were deleted under it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest

from shammah.bus.client import Peer
from shammah.bus.endpoints import RoleLock
from shammah.bus.messages import ChatMessage, Done, Failed, Loading, Ready, Token
from shammah.chat.conversation import Notice
from shammah.chat.session import Session
from shammah.router.decision import Override
from shammah.settings.load import load_settings
from shammah.supervision.lifecycle import Rung, stop
from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import Sandbox, until
from tests.fakes.turns import way_of

pytestmark = pytest.mark.timeout(300)

StartEcho = Callable[..., EchoProcess]
Connect = Callable[..., Peer]


def answer(peer: Peer) -> object:
    return list(peer.generate((ChatMessage("user", "hello"),)))[-1]


def test_a_state_is_learnt_though_the_event_socket_is_gone(
    sandbox: Sandbox, start_echo: StartEcho, connect: Connect
) -> None:
    enough = sandbox.root / "enough"
    start_echo("--load-until", str(enough))
    (sandbox.endpoints.runtime / "inference.events").unlink()
    peer = connect()
    until(lambda: _is(peer, Loading), "it loads")
    enough.touch()
    until(lambda: _is(peer, Ready), "it is ready")
    assert isinstance(answer(peer), Done)


@pytest.mark.parametrize("name", ["inference.sock", "inference.events"])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_socket_is_bound_again(
    sandbox: Sandbox, start_echo: StartEcho, connect: Connect, name: str, replaced: bool
) -> None:
    """Who is connected stays so, and who comes later is served as well."""
    echo = start_echo()
    before = connect()
    file = sandbox.endpoints.runtime / name
    file.unlink()
    if replaced:
        file.touch()
    until(file.is_socket, "it is there again")
    after = connect()
    assert isinstance(answer(before), Done)
    assert isinstance(answer(after), Done)
    until(lambda: _is(after, Ready), "events arrive")
    assert echo.alive()


def test_a_deleted_lock_is_taken_again(
    sandbox: Sandbox, start_echo: StartEcho, connect: Connect
) -> None:
    echo = start_echo()
    peer = connect()
    sandbox.endpoints.lock("inference").unlink()
    until(lambda: sandbox.holder() == echo.pid, "it holds the new one")
    assert isinstance(answer(peer), Done)
    assert stop("inference", sandbox.endpoints) is Rung.REQUEST
    assert echo.wait() == 0


def test_the_older_of_two_workers_ends(
    sandbox: Sandbox, start_echo: StartEcho, connect: Connect
) -> None:
    """The lock file was deleted, and the other one was faster."""
    older, path = start_echo("--delay-ms", "5"), sandbox.endpoints.lock("inference")
    replies = iter(connect().generate((ChatMessage("user", "forever"),)))
    next(replies)
    faster = RoleLock(path.with_suffix(".new"))
    assert faster.acquire()
    try:
        faster.path.replace(path)
        assert older.wait() == 0
        (*_, end) = replies
        assert isinstance(end, Failed)
        assert "its lock file was deleted" in end.message
        assert end.code == "worker_died"  # so that the turn goes on with the other one
        assert sandbox.holder() == os.getpid()
    finally:
        faster.release()


@pytest.mark.usefixtures("echo_spawns")
def test_a_turn_goes_on_with_the_newer_of_two_workers(
    sandbox: Sandbox, start_echo: StartEcho
) -> None:
    older = start_echo("--delay-ms", "5")
    session = Session(load_settings(os.environ, "starter"), os.environ, "repl")
    try:
        steps = way_of(session, (ChatMessage("user", "forever"),), Override())
        next(step for step in steps if isinstance(step, Token))
        older.freeze()
        sandbox.endpoints.lock("inference").unlink()
        newer = start_echo("--delay-ms", "5")
        older.thaw()
        next(step for step in steps if isinstance(step, Notice))
        next(step for step in steps if isinstance(step, Token))
        session.interrupt()
        assert older.wait() == 0
        assert sandbox.holder() == newer.pid
    finally:
        session.close()


def test_a_worker_whose_runtime_directory_is_gone_ends(
    sandbox: Sandbox, start_echo: StartEcho
) -> None:
    """Nobody could ever find it, nor stop it."""
    echo = start_echo("--keep-alive", "-1")
    shutil.rmtree(sandbox.endpoints.runtime)
    assert echo.wait() == 0


def test_a_runtime_directory_that_cannot_be_entered_ends_nobody(
    sandbox: Sandbox, start_echo: StartEcho, connect: Connect
) -> None:
    echo, peer = start_echo(), connect()
    sandbox.endpoints.runtime.chmod(0)
    assert isinstance(answer(peer), Done)
    sandbox.endpoints.runtime.chmod(0o700)
    assert echo.status().status.clients == 1


def _is(peer: Peer, state: type) -> bool:
    return peer.latest is not None and isinstance(peer.latest.status.state, state)
