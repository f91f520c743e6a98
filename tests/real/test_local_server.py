"""A server next door as the local model: asked, cancelled, killed in mid-answer, started again."""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from shammah.bus.messages import (
    ChatMessage,
    Done,
    Failed,
    Generate,
    NotAvailable,
    Ready,
    Sampling,
    Token,
)
from shammah.settings.load import home_directory
from shammah.settings.model import InferenceSettings, ServerSettings, Settings
from tests.real.servers import free_port, messages_api_server
from workers.openai import watching
from workers.openai.service import ServerService
from workers.service import Outlet

pytestmark = pytest.mark.timeout(200)

LIMIT_S = 60.0
FRANCE = "What is the capital of France?"
STORY = "Write a very long story about the sea."


class Running:
    """A `ServerService` on a thread."""

    def __init__(self, port: int) -> None:
        self.state: Ready | NotAvailable | None = None
        self.outlet = Outlet(lambda: None)
        box = ServerSettings(f"http://127.0.0.1:{port}/v1")
        self.service = ServerService(
            Settings(
                home_directory(os.environ),
                model="server:box",
                inference=InferenceSettings(max_new_tokens=256),
                servers={"box": box},
            )
        )
        self.thread = threading.Thread(target=self.service.run, args=(self.outlet,), daemon=True)
        self.thread.start()

    def wait(self, kind: type) -> Any:
        """The next message of a kind; others are passed over, and states remembered."""
        while not isinstance(message := self._next(), kind):
            pass
        return message

    def wait_until_lost(self) -> None:
        """Until the last state is that the server is not available."""
        while not isinstance(self.state, NotAvailable):
            self._next()

    def _next(self) -> Any:
        message = self.outlet.queue.get(timeout=LIMIT_S)
        if isinstance(message, Ready | NotAvailable):
            self.state = message
        return message

    def ask(
        self, content: str, request_id: str = "r1", begun: str = "", stop: tuple[str, ...] = ()
    ) -> None:
        messages = [ChatMessage("user", content)]
        messages += [ChatMessage("assistant", begun)] if begun else []
        self.service.submit(Generate(request_id, tuple(messages), Sampling(stop=stop)))

    def answer(self) -> tuple[str, Done | Failed]:
        pieces = []
        while isinstance(message := self.wait(Token | Done | Failed), Token):
            pieces.append(message.text)
        return "".join(pieces), message


def busy_slots(port: int) -> int:
    """How many answers the server computes just now."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/slots", timeout=LIMIT_S) as response:
        return sum(slot["is_processing"] for slot in json.load(response))


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(watching, "MISSED_S", (0.05,))
    return free_port()


@pytest.fixture
def running(port: int) -> Iterator[Running]:
    running = Running(port)
    yield running
    running.service.stop()
    running.thread.join(LIMIT_S)
    assert not running.thread.is_alive()


def test_a_server_is_asked_cancelled_killed_and_found_again(running: Running, port: int) -> None:
    absent = running.wait(NotAvailable)
    assert "nothing is listening there" in absent.reason
    with messages_api_server(port):
        ready = running.wait(Ready)
        assert (ready.model, ready.engine) == ("smollm2-135m", "server")
        assert ready.context_length > 0
        running.ask(FRANCE)
        text, done = running.answer()
        assert "Paris" in text
        assert isinstance(done, Done)
        assert (done.finish_reason, done.provenance.role) == ("stop", "inference")
        assert done.usage.input_tokens > done.usage.output_tokens > 0

        running.ask(FRANCE, "r2", stop=(" is",))
        text, done = running.answer()
        assert (text.strip(), done.finish_reason) == ("The capital of France", "stop")

        running.ask(STORY, "r2")
        running.wait(Token)
        assert busy_slots(port)
        running.service.cancel("r2")
        _, done = running.answer()
        assert isinstance(done, Done)
        assert done.finish_reason == "cancelled"
        deadline = time.monotonic() + LIMIT_S
        while busy_slots(port):
            assert time.monotonic() < deadline, "the server goes on for nobody"
            time.sleep(0.02)

        running.ask(STORY, "r3")
        running.wait(Token)
    text, failed = running.answer()
    assert isinstance(failed, Failed)
    assert failed.code == "server_interrupted"
    running.ask(FRANCE, "r4")
    _, failed = running.answer()
    assert isinstance(failed, Failed)
    assert failed.code == "server_unreachable"
    running.wait_until_lost()
    with messages_api_server(port):
        running.wait(Ready)
        running.ask(FRANCE, "r5", begun="The capital of France")
        text, done = running.answer()
        assert isinstance(done, Done)
        assert "Paris" in text
