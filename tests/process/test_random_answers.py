"""A thousand answers of random tokens to eight clients at once, some of which change their mind.

The worker is the real one, with the native engine; the model's tokenizer spells unknown
characters as bytes, so most of what it writes is no text.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from shammah.bus.client import new_request_id
from shammah.bus.messages import (
    Accepted,
    Cancel,
    ChatMessage,
    ClientInfo,
    Ended,
    Event,
    Failed,
    Generate,
    Message,
    Ping,
    Pong,
    PromptProgress,
    Ready,
    Sampling,
    Token,
)
from shammah.settings.load import load_settings
from shammah.supervision import lifecycle
from shammah.supervision.lifecycle import ensure, worker_spec
from tests.fakes.sandbox import Sandbox, until
from tests.fakes.wire import RawFrontend
from tests.real.models import KEPT_KERNELS, make_byte_fallback

pytestmark = pytest.mark.timeout(300)

CLIENTS, ANSWERS, KINDS, TOKENS = 8, 1000, 40, 20
LIMIT_S = 120.0
RANDOM = Sampling(temperature=3.0, top_p=1.0, top_k=0, repetition_penalty=1.0)
"""Almost any token may come, and what comes depends on all before it."""


@dataclass
class Wanted:
    """One question: which of the kinds it is, and after how many pieces it is cancelled."""

    kind: int
    patience: int


@dataclass
class Client:
    """A frontend that asks one question after the other."""

    wire: RawFrontend
    wanted: list[Wanted]
    current: tuple[str, Wanted] | None = None
    texts: dict[str, str] = field(default_factory=dict)
    asked: dict[str, Wanted] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)
    strays: list[Message] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)
    failed: list[Failed] = field(default_factory=list)
    pieces: int = 0

    def ask(self) -> bool:
        """The next question, if there is one."""
        if not self.wanted:
            return False
        wanted = self.wanted.pop()
        name = self.wire.send(question(wanted.kind))
        self.current, self.pieces = (name, wanted), 0
        self.asked[name], self.texts[name] = wanted, ""
        return True

    def hear(self, wait: float) -> None:
        """All that has come; for the first of it ``wait`` seconds."""
        for message in self.wire.arrived(wait):
            self._take(message)
        if self.current is not None and self.pieces >= self.current[1].patience:
            name = self.current[0]
            if name not in self.cancelled:
                self.cancelled.add(name)
                self.wire.send(Cancel(name))

    def _take(self, message: Message) -> None:
        if isinstance(message, Pong | Event):
            return
        if self.current is None or message.request_id != self.current[0]:
            self.strays.append(message)
            return
        self.pieces += 1
        if isinstance(message, Token):
            self.texts[message.request_id] += message.text
        elif isinstance(message, Ended):
            self.ends[message.request_id] += 1
            self.current = None
            if isinstance(message, Failed):
                self.failed.append(message)
        elif not isinstance(message, Accepted | PromptProgress):
            self.strays.append(message)


def question(kind: int) -> Generate:
    sampling = replace(RANDOM, seed=kind)
    asked = (ChatMessage("user", f"{kind}: what is this? " + "\u00e9\U0001f680" * (kind % 5)),)
    return Generate(new_request_id(), asked, sampling, TOKENS)


def answer_all(clients: list[Client]) -> None:
    """Until every question of every client has its end."""
    turn = 0
    while any(client.current is not None or client.ask() for client in clients):
        turn += 1
        for client in clients:
            client.hear(0.001)
            if client.current is None:
                client.ask()
            elif turn % 100 == 0:
                client.wire.send(Ping(new_request_id()))


@pytest.fixture
def worker(sandbox: Sandbox, tmp_path: Path) -> Iterator[lifecycle.Peer]:
    (sandbox.shammah_home / "kernels").symlink_to(KEPT_KERNELS)
    (sandbox.shammah_home / "config.toml").write_text('[inference]\nengine = "native"\n')
    model = make_byte_fallback(tmp_path / "model")
    spec = worker_spec(load_settings(os.environ, str(model)), "inference", os.environ)
    peer = ensure(spec, sandbox.endpoints, ClientInfo("test", os.getpid()))

    def ready() -> bool:
        return peer.latest is not None and isinstance(peer.latest.status.state, Ready)

    until(ready, "the model is ready", LIMIT_S)
    yield peer
    peer.close()
    lifecycle.stop("inference", sandbox.endpoints)
    for child in lifecycle.children:
        child.wait(LIMIT_S)


def test_a_thousand_random_answers_end_once_each_and_are_nobody_elses(
    worker: lifecycle.Peer, sandbox: Sandbox
) -> None:
    lonely = Client(RawFrontend(sandbox.endpoints), [Wanted(kind, 999) for kind in range(KINDS)])
    lonely.wire.attach()
    answer_all([lonely])
    alone = {wanted.kind: lonely.texts[name] for name, wanted in lonely.asked.items()}
    assert len(set(alone.values())) == KINDS
    assert sum("\ufffd" in text for text in alone.values()) > KINDS // 2

    chance = random.Random(7)
    clients = [Client(RawFrontend(sandbox.endpoints), []) for _ in range(CLIENTS)]
    for number in range(ANSWERS):
        patience = chance.choice((0, 1, 2, 3, 999, 999, 999))
        wanted = Wanted(chance.randrange(KINDS), patience)
        clients[number % CLIENTS].wanted.append(wanted)
    for client in clients:
        client.wire.attach()
    answer_all(clients)

    whole = 0
    for client in clients:
        assert (client.failed, client.strays) == ([], [])
        assert set(client.ends.values()) == {1}
        assert set(client.ends) == set(client.asked)
        for name, wanted in client.asked.items():
            expected = alone[wanted.kind]
            assert expected.startswith(client.texts[name])
            whole += client.texts[name] == expected
        client.wire.close()
    lonely.wire.close()
    assert whole > ANSWERS // 3  # nobody cancels three in seven
    assert worker.latest is not None
    assert isinstance(worker.latest.status.state, Ready)
    until(lambda: worker.latest is not None and worker.latest.status.active == 0, "all is done")
