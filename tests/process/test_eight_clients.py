"""Eight clients of one inference worker, which share its steps and nothing else.

The worker is the real one, with the starter and the native engine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from shammah.bus.client import Peer, Task, new_request_id
from shammah.bus.messages import (
    Accepted,
    Cancel,
    ChatMessage,
    ClientInfo,
    Done,
    Failed,
    Generate,
    Ready,
    Sampling,
    Token,
)
from shammah.settings.load import load_settings
from shammah.supervision import lifecycle
from shammah.supervision.lifecycle import ensure, worker_spec
from tests.fakes.sandbox import Sandbox, until
from tests.real.models import KEPT_KERNELS

pytestmark = pytest.mark.timeout(300)

LIMIT_S = 120.0
LONG = 100_000
"""More tokens than an answer may have: it goes on until the context is full."""

FOREVER = "Write the numbers from one to ten thousand in words, one after the other."
CLIENT = """
import sys
from shammah.bus.client import Peer
from shammah.bus.endpoints import Endpoints
from shammah.bus.messages import ChatMessage, ClientInfo, Sampling, Token
from pathlib import Path
peer = Peer(Endpoints(Path(sys.argv[1])), "inference", ClientInfo("test", 1))
assert peer.wait_welcome(60)
for reply in peer.generate((ChatMessage("user", sys.argv[2]),), Sampling(0.0), 100_000):
    print(type(reply).__name__, flush=True)
"""


@dataclass
class Question:
    """What one client asks."""

    text: str
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0))
    tokens: int = 24


QUESTIONS = (
    Question("What is the capital of France?"),
    Question("Name three colours.", tokens=12),
    Question("Tell me a story. " * 60, Sampling(0.0, stop=(".",)), 40),
    Question("Count to twenty.", Sampling(0.0, stop=("4", "five")), 40),
    Question("Tell me a story.", Sampling(1.2, 1.0, 0, seed=7), 30),
    Question("Tell me a story.", Sampling(1.2, 1.0, 0, seed=8), 30),
    Question("What do bees do? " * 30, Sampling(0.8, 0.9, 40, 1.2, seed=9), 20),
    Question("Say hello.", tokens=1),
)


@pytest.fixture
def join(sandbox: Sandbox) -> Iterator[Callable[[], Peer]]:
    """Makes clients of a worker that is ready."""
    (sandbox.shammah_home / "kernels").symlink_to(KEPT_KERNELS)
    (sandbox.shammah_home / "config.toml").write_text('[inference]\nengine = "native"\n')
    spec = worker_spec(load_settings(os.environ, "starter"), "inference", os.environ)
    peers: list[Peer] = []

    def make() -> Peer:
        peers.append(ensure(spec, sandbox.endpoints, ClientInfo("test", os.getpid())))
        return peers[-1]

    first = make()
    until(
        lambda: first.latest is not None and isinstance(first.latest.status.state, Ready),
        "the model is ready",
        LIMIT_S,
    )
    yield make
    for peer in peers:
        peer.close()
    lifecycle.stop("inference", sandbox.endpoints)
    for child in lifecycle.children:
        child.wait(LIMIT_S)


def begin(peer: Peer, question: Question) -> Task:
    messages = (ChatMessage("user", question.text),)
    return peer.begin(Generate(new_request_id(), messages, question.sampling, question.tokens))


def end(task: Task) -> tuple[str, Done]:
    text = ""
    for reply in task:
        assert not isinstance(reply, Failed), reply
        if isinstance(reply, Token):
            text += reply.text
        if isinstance(reply, Done):
            return text, reply
    raise AssertionError("no end")


def wait_token(task: Task) -> Token:
    while True:
        reply = task.replies.get(timeout=LIMIT_S)
        assert isinstance(reply, Accepted | Token), reply
        if isinstance(reply, Token):
            return reply


def test_each_gets_what_it_would_get_alone(join: Callable[[], Peer], sandbox: Sandbox) -> None:
    """Whoever else is there: some that cancel, in the prompt or in the answer, and one that
    dies."""
    lonely = join()
    alone = [end(begin(lonely, question)) for question in QUESTIONS]
    assert alone[0][0] == "The capital of France is Paris."
    assert len({text for text, _ in alone}) == len(QUESTIONS)
    doomed = spawn_client(sandbox)
    peers = [join() for _ in QUESTIONS]
    reader, writer = join(), join()
    in_prompt = begin(reader, Question("The sea is wide. " * 1200, tokens=LONG))
    in_answer = begin(writer, Question(FOREVER, tokens=LONG))
    tasks = [begin(peer, question) for peer, question in zip(peers, QUESTIONS, strict=True)]
    reader.send(Cancel(in_prompt.request_id))
    wait_token(in_answer)
    writer.send(Cancel(in_answer.request_id))
    doomed.send_signal(signal.SIGKILL)
    together = [end(task) for task in tasks]
    for (text, done), (own, first) in zip(together, alone, strict=True):
        assert (text, done.finish_reason) == (own, first.finish_reason)
        assert done.usage.output_tokens == first.usage.output_tokens
    cancelled = end(in_prompt)
    assert (cancelled[0], cancelled[1].finish_reason) == ("", "cancelled")
    assert end(in_answer)[1].finish_reason == "cancelled"
    doomed.communicate()
    until(lambda: status(lonely) == 0, "nothing is computed any more")


def test_the_slot_of_a_client_that_dies_goes_to_the_next(
    join: Callable[[], Peer], sandbox: Sandbox
) -> None:
    """Seven that never end and one that dies fill all eight slots; a ninth waits."""
    dying = spawn_client(sandbox)
    seven = [join() for _ in range(7)]
    tasks = [begin(peer, Question(FOREVER, tokens=LONG)) for peer in seven]
    for task in tasks:
        wait_token(task)
    ninth = begin(join(), QUESTIONS[0])
    assert isinstance(ninth.replies.get(timeout=LIMIT_S), Accepted)
    for _ in range(20):  # twenty more steps, and none was for it
        wait_token(tasks[0])
    assert ninth.replies.empty()
    dying.send_signal(signal.SIGKILL)
    text, done = end(ninth)
    assert text == "The capital of France is Paris."
    assert done.timings.queue_s > 0
    for task, peer in zip(tasks, seven, strict=True):
        peer.send(Cancel(task.request_id))
        assert end(task)[1].finish_reason == "cancelled"  # they were still at it
    dying.communicate()


def spawn_client(sandbox: Sandbox) -> subprocess.Popen[str]:
    """A client in a process of its own, whose answer has begun."""
    command = [sys.executable, "-c", CLIENT, str(sandbox.endpoints.runtime), FOREVER]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    while "Token" not in client.stdout.readline():
        assert client.poll() is None
    threading.Thread(target=client.stdout.read, name="drain", daemon=True).start()
    return client


def status(peer: Peer) -> int:
    """Requests that the worker has not ended."""
    assert peer.latest is not None
    return peer.latest.status.active
