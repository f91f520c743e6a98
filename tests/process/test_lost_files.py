"""A worker whose files in the runtime directory were deleted under it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shammah.bus.client import Peer
from shammah.bus.messages import ChatMessage, Done, Loading, Ready
from tests.standins.echo_process import EchoProcess
from tests.standins.sandbox import Sandbox, until

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


def _is(peer: Peer, state: type) -> bool:
    return peer.latest is not None and isinstance(peer.latest.status.state, state)
