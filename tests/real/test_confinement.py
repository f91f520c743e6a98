"""The kernel holds a real worker that was made to misbehave, and the proof of it says so."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shammah.bus.client import Peer
from shammah.bus.messages import ChatMessage, ClientInfo, Done, Token
from shammah.settings.load import load_settings
from shammah.supervision import lifecycle
from shammah.supervision.lifecycle import ensure, worker_spec
from tests.fakes import planted
from tests.fakes.command import run
from tests.fakes.sandbox import LIMIT_S, Sandbox
from workers.confinement import kernel

pytestmark = pytest.mark.timeout(300)

needs_landlock = pytest.mark.skipif(
    kernel.landlock_version() < kernel.SCOPES_SINCE,
    reason="needs a kernel with Landlock and its scopes (Linux 6.12)",
)
PLANTED = str(Path(planted.__file__))
REFUSED = {"read": "EACCES", "write": "EACCES", "connect": "EPERM", "start": "EPERM"}


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("PLANTED_PORT", str(listening.getsockname()[1]))
        yield listening


@pytest.fixture
def attach(
    sandbox: Sandbox, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Peer]]:
    """Starts the worker with the planted line."""
    key = sandbox.home / ".ssh" / planted.SECRET
    key.parent.mkdir()
    key.write_text("secret")
    monkeypatch.setattr(
        lifecycle,
        "worker_command",
        lambda spec: [sys.executable, "-P", PLANTED, spec.role, *spec.arguments],
    )
    peers: list[Peer] = []

    def start() -> Peer:
        spec = worker_spec(load_settings(os.environ, "starter"), "inference", os.environ)
        peers.append(ensure(spec, sandbox.endpoints, ClientInfo("test", os.getpid())))
        return peers[-1]

    yield start
    for peer in peers:
        peer.close()
    lifecycle.stop("inference", sandbox.endpoints)
    for child in lifecycle.children:
        child.wait(LIMIT_S)


def answer(peer: Peer) -> str:
    replies = list(peer.generate((ChatMessage("user", "What is the capital of France?"),)))
    assert isinstance(replies[-1], Done)
    return "".join(reply.text for reply in replies if isinstance(reply, Token))


def deeds(sandbox: Sandbox) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for thread, name, said in re.findall(r"planted: (\w+) (\w+) (\w+)", sandbox.log()):
        found.setdefault(thread, {})[name] = said
    return found


def seccomp_modes(pid: int) -> set[str]:
    """Of all threads; 2 is a filter."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {
        line.split()[1]
        for task in tasks
        for line in (task / "status").read_text().splitlines()
        if line.startswith("Seccomp:")
    }


@needs_landlock
def test_a_worker_that_misbehaves_is_stopped_and_answers_on(
    sandbox: Sandbox, attach: Callable[[], Peer]
) -> None:
    peer = attach()
    assert "Paris" in answer(peer)
    assert deeds(sandbox) == {"own": REFUSED, "new": REFUSED}
    assert not (sandbox.home / "config").exists()
    pid = sandbox.holder()
    assert pid
    assert seccomp_modes(pid) == {"2"}
    ended = run("doctor", "--prove")
    assert ended.code == 0, ended.said
    assert "proven" in ended.out
    found = json.loads(run("doctor", "--prove", "--json").out)
    trials = found["workers"]["inference"]["trials"]
    assert all(trial["refused"] and trial["due"] for trial in trials)
    assert not list(sandbox.home.glob(".shammah-proof-*"))
    assert "confined: files" in sandbox.log()


@needs_landlock
def test_with_confine_off_nothing_holds_and_the_proof_fails(
    sandbox: Sandbox, attach: Callable[[], Peer], listener: socket.socket
) -> None:
    (sandbox.shammah_home / "config.toml").write_text('confine = "off"\n')
    peer = attach()
    assert "Paris" in answer(peer)
    done = dict.fromkeys(REFUSED, "done")
    assert deeds(sandbox) == {"own": done, "new": done}
    listener.accept()[0].close()
    ended = run("doctor", "--prove")
    assert ended.code == 1
    assert "The setting confine is off." in ended.said
    assert (sandbox.shammah_home / "config.toml").read_text() == 'confine = "off"\n'


def test_without_a_worker_there_is_nothing_to_prove() -> None:
    ended = run("doctor", "--prove")
    assert ended.code == 1
    assert "No worker is running" in ended.said
