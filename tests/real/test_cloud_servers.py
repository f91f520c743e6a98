"""The cloud service against real servers: one with a real model, one that breaks on demand."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shammah.bus.messages import (
    ChatMessage,
    Done,
    Failed,
    Generate,
    Loading,
    Provenance,
    Ready,
    Retrying,
    Sampling,
    Token,
)
from shammah.privacy.ledger import read_ledger
from shammah.settings.load import home_directory
from shammah.settings.model import CloudSettings, Settings
from tests.real.servers import FaultyServer, llmock_server, messages_api_server
from workers.cloud import claude
from workers.cloud.service import CloudService
from workers.outgoing import retry
from workers.service import Outlet

pytestmark = pytest.mark.timeout(400)

LIMIT_S = 60.0
FOR_EVER_S = 1000
"""What a test waits for that long, it does not get."""

FRANCE = "What is the capital of France?"
STORY = "Write a very long story about the sea."


class Running:
    """A `CloudService` on a thread, with the real SDK."""

    def __init__(self, base_url: str) -> None:
        cloud = CloudSettings(api_key="sk-test-secret", base_url=base_url, max_tokens=64)
        self.home = home_directory(os.environ)
        self.service = CloudService(Settings(self.home, cloud=cloud))
        self.retries: list[Retrying] = []
        self.outlet = Outlet(lambda: None)
        self.thread = threading.Thread(target=self.service.run, args=(self.outlet,), daemon=True)
        self.thread.start()

    def start(self) -> None:
        assert isinstance(self.next(), Loading)
        assert isinstance(self.next(), Ready)

    def next(self) -> Any:
        return self.outlet.queue.get(timeout=LIMIT_S)

    def submit(self, content: str = FRANCE, request_id: str = "r1", **fields: Any) -> None:
        messages = (ChatMessage("user", content),)
        self.service.submit(Generate(request_id, messages, **fields))

    def outcome(self) -> tuple[str, Done | Failed]:
        """The text of the next answer, and how it ended."""
        pieces = []
        while isinstance(message := self.next(), Token | Retrying):
            if isinstance(message, Token):
                pieces.append(message.text)
            else:
                self.retries.append(message)
        assert isinstance(message, Done | Failed)
        return "".join(pieces), message

    def cancel(self, request_id: str = "r1") -> Done:
        """Cancel and give the `Done`, which waits for no server."""
        self.service.cancel(request_id)
        while not isinstance(message := self.next(), Done):
            assert isinstance(message, Token)
        assert message.finish_reason == "cancelled"
        return message

    def stop(self) -> None:
        self.service.stop()
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive()
        with pytest.raises(queue.Empty):  # nothing ends twice
            self.outlet.queue.get_nowait()


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme in ("http", "https", "all"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme}_proxy".upper(), raising=False)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def run() -> Iterator[Callable[[str], Running]]:
    """Start a service for a base URL; stopped and checked for leftovers at the end."""
    started: list[Running] = []

    def start(base_url: str) -> Running:
        started.append(Running(base_url))
        started[-1].start()
        return started[-1]

    yield start
    for running in started:
        running.stop()


# --- a real model ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def messages_api() -> Iterator[str]:
    with messages_api_server() as base_url:
        yield base_url


def test_a_true_answer_is_streamed(messages_api: str, run: Callable[[str], Running]) -> None:
    running = run(messages_api)
    running.submit(sampling=Sampling(temperature=0.0))
    tokens = []
    while isinstance(message := running.next(), Token):
        tokens.append(message)
    assert "Paris" in "".join(token.text for token in tokens)
    assert len(tokens) > 3
    assert [token.index for token in tokens] == sorted(token.index for token in tokens)
    assert isinstance(message, Done), message
    assert message.finish_reason == "stop"
    assert message.notices == ()
    assert message.usage.input_tokens > 5
    assert message.usage.output_tokens >= len(tokens)
    assert 0 < message.timings.ttft_s < message.timings.total_s
    assert message.timings.decode_tokens_per_second > 0
    assert message.provenance == Provenance("cloud", "smollm2-135m", engine="anthropic")


def test_the_conversation_is_known(messages_api: str, run: Callable[[str], Running]) -> None:
    running = run(messages_api)
    messages = (
        ChatMessage("system", "You are a helpful assistant."),
        ChatMessage("user", "My name is Amaryllis."),
        ChatMessage("assistant", "Hello, Amaryllis!"),
        ChatMessage("user", "What is my name?"),
    )
    running.service.submit(Generate("r1", messages, Sampling(temperature=0.0)))
    text, done = running.outcome()
    assert isinstance(done, Done), done
    assert "Amaryllis" in text


def test_the_limit_is_kept(messages_api: str, run: Callable[[str], Running]) -> None:
    running = run(messages_api)
    running.submit(max_new_tokens=3)
    _, done = running.outcome()
    assert isinstance(done, Done)
    assert (done.finish_reason, done.usage.output_tokens) == ("length", 3)


def test_too_long_a_conversation_is_refused_in_words(
    messages_api: str, run: Callable[[str], Running]
) -> None:
    running = run(messages_api)
    running.submit("word " * 6000)
    _, failed = running.outcome()
    assert isinstance(failed, Failed)
    assert failed.code == "cloud_bad_request"
    assert "context" in failed.message
    assert "new one" in failed.hint


def test_a_cancel_in_mid_answer_frees_the_server(
    messages_api: str, run: Callable[[str], Running]
) -> None:
    running = run(messages_api)
    running.submit(STORY, max_new_tokens=2000)
    assert isinstance(running.next(), Token)
    done = running.cancel()
    assert 1 <= done.usage.output_tokens < 1000
    running.submit(request_id="r2", sampling=Sampling(temperature=0.0))
    text, ended = running.outcome()
    assert isinstance(ended, Done)
    assert "Paris" in text


def test_two_answers_at_a_time(messages_api: str, run: Callable[[str], Running]) -> None:
    running = run(messages_api)
    running.submit(STORY, "long", max_new_tokens=2000)
    first = running.next()
    assert isinstance(first, Token)
    running.submit(request_id="short", max_new_tokens=3)
    while not isinstance(message := running.next(), Done):
        assert isinstance(message, Token), message
    assert message.request_id == "short"
    running.cancel("long")


# --- faults ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llmock() -> Iterator[FaultyServer]:
    with llmock_server() as server:
        yield server


@pytest.fixture
def faulty(llmock: FaultyServer) -> FaultyServer:
    llmock.reset()
    return llmock


def test_a_scripted_answer(faulty: FaultyServer, run: Callable[[str], Running]) -> None:
    faulty.script({"type": "reply", "text": "It is Paris, of course."})
    running = run(faulty.base_url)
    running.submit(sampling=Sampling(temperature=0.25), max_new_tokens=9)
    text, done = running.outcome()
    assert isinstance(done, Done)
    assert text == "It is Paris, of course."
    (asked,) = faulty.requests()
    assert asked["stream"] is True
    assert (asked["body"]["temperature"], asked["body"]["max_tokens"]) == (0.25, 9)


@pytest.mark.parametrize(
    ("fail", "code", "hint"),
    [
        ({"status": 400}, "cloud_bad_request", "Follow what it says"),
        ({"status": 401}, "cloud_key_rejected", "ANTHROPIC_API_KEY"),
        ({"status": 403}, "cloud_key_rejected", "ANTHROPIC_API_KEY"),
        ({"status": 404}, "cloud_model_unknown", "model under [cloud]"),
        ({"status": 413}, "cloud_too_large", "less text"),
        ({"status": 429, "retry_after": 300}, "cloud_rate_limited", "in 300 s"),
    ],
)
def test_a_refusal_is_told_at_once_and_not_retried(
    faulty: FaultyServer,
    run: Callable[[str], Running],
    fail: dict[str, Any],
    code: str,
    hint: str,
) -> None:
    faulty.script({"type": "fail", **fail})
    running = run(faulty.base_url)
    running.submit()
    _, failed = running.outcome()
    assert isinstance(failed, Failed)
    assert failed.code == code
    assert hint in failed.hint
    assert str(fail["status"]) in failed.message
    assert "secret" not in failed.message + failed.hint
    assert len(faulty.requests()) == 1
    running.submit(request_id="r2")  # the client goes on
    assert isinstance(running.outcome()[1], Done)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("disconnect", "cloud_interrupted"),
        ("truncate", "cloud_truncated"),
        ("malformed", "cloud_malformed"),
    ],
)
def test_an_answer_that_breaks_off(
    faulty: FaultyServer, run: Callable[[str], Running], kind: str, code: str
) -> None:
    reply = {"type": "reply", "text": "one two three four five six"}
    faulty.script(reply, {"type": "stream_fault", "kind": kind, "after_chunks": 5})
    running = run(faulty.base_url)
    running.submit()
    text, failed = running.outcome()
    assert isinstance(failed, Failed)
    assert failed.code == code
    assert text == "one two "
    running.submit(request_id="r2")
    assert isinstance(running.outcome()[1], Done)


@pytest.mark.parametrize(
    ("fail", "code", "why"),
    [
        ({"status": 408}, "cloud_timeout", "timed out waiting"),
        ({"status": 429, "retry_after": 1}, "cloud_rate_limited", "is rate limiting"),
        ({"status": 500}, "cloud_server_error", "failed"),
        ({"status": 529}, "cloud_overloaded", "is overloaded"),
    ],
)
def test_a_refusal_that_passes_is_asked_again(
    faulty: FaultyServer,
    run: Callable[[str], Running],
    fail: dict[str, Any],
    code: str,
    why: str,
) -> None:
    faulty.script({"type": "fail", **fail}, {"type": "reply", "text": "Paris."})
    running = run(faulty.base_url)
    running.submit()
    text, done = running.outcome()
    assert isinstance(done, Done), done
    assert text == "Paris."
    (told,) = running.retries
    assert why in told.why
    assert (told.request_id, told.attempt) == ("r1", 2)
    assert told.wait_s >= fail.get("retry_after", 0)
    sent, _ = read_ledger(running.home)
    assert [(one.attempt, one.outcome, one.status) for one in sent] == [
        (1, code, fail["status"]),
        (2, "answered", 200),
    ]
    assert len(faulty.requests(2)) == 2


STALL = {"type": "stream_fault", "kind": "stall", "after_chunks": 5, "stall_seconds": FOR_EVER_S}
SLOW = {"type": "slow_first_token", "seconds": FOR_EVER_S}
DELAY = {"type": "delay", "seconds": FOR_EVER_S}
REPLY = {"type": "reply", "text": "one two three four five six"}


def test_a_cancel_in_a_stall_closes_the_connection(
    faulty: FaultyServer, run: Callable[[str], Running]
) -> None:
    faulty.script(REPLY, STALL)
    running = run(faulty.base_url)
    running.submit()
    assert [running.next().text, running.next().text] == ["one ", "two "]
    assert running.cancel().usage.output_tokens >= 2
    (asked,) = faulty.requests()
    assert not asked["completed"]
    assert asked["stall_waited"] < FOR_EVER_S


@pytest.mark.parametrize("behaviour", [SLOW, DELAY], ids=["first token", "headers"])
def test_a_cancel_before_the_first_token(
    faulty: FaultyServer, run: Callable[[str], Running], behaviour: dict[str, Any]
) -> None:
    faulty.script(behaviour)
    running = run(faulty.base_url)
    running.submit()
    _wait_until(lambda: not faulty.pending())  # the server has taken the request
    assert running.cancel().usage.output_tokens == 0


def test_silence_is_a_timeout(
    faulty: FaultyServer, run: Callable[[str], Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claude, "READ_TIMEOUT_S", 3.0)  # what the server may take for the rest
    running = run(faulty.base_url)
    faulty.script(REPLY, STALL)
    running.submit()
    text, failed = running.outcome()
    assert isinstance(failed, Failed)
    assert (failed.code, text) == ("cloud_timeout", "one two ")
    assert "midway" in failed.message
    assert running.retries == []  # text was shown
    faulty.script(SLOW, SLOW)
    running.submit(request_id="r2")
    _, failed = running.outcome()
    assert isinstance(failed, Failed)
    assert failed.code == "cloud_timeout"
    assert [told.attempt for told in running.retries] == [2]


def test_stop_closes_what_is_open(faulty: FaultyServer, run: Callable[[str], Running]) -> None:
    faulty.script(REPLY, STALL)
    running = run(faulty.base_url)
    running.submit()
    running.next()
    running.service.stop()
    assert running.outcome()[1].finish_reason == "cancelled"  # type: ignore[union-attr]
    running.thread.join(LIMIT_S)
    assert not running.thread.is_alive()


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
