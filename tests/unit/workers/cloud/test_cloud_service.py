"""The cloud service around a scripted backend: no SDK, no network."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from shammah.bus.messages import (
    ChatMessage,
    Done,
    Failed,
    Generate,
    Loading,
    NotAvailable,
    Provenance,
    Ready,
    Retrying,
    Timings,
    Token,
    Usage,
)
from shammah.errors import ShammahError
from shammah.privacy.ledger import Ledger, Outcome, Sent
from shammah.settings.load import home_directory
from shammah.settings.model import CloudSettings, Settings
from workers.cloud import service
from workers.cloud.budget import Budget
from workers.cloud.service import NEVER, Backend, CloudService
from workers.service import Outlet

LIMIT_S = 60.0
CLOUD = CloudSettings(api_key="sk-secret", model="claude-test")
READY = Ready(model="claude-test", engine="anthropic")


def settings(**cloud: Any) -> Settings:
    return Settings(home_directory(os.environ), cloud=replace(CLOUD, **cloud))


class Scripted:
    """Answers ``wait`` never, ``break`` with an error, anything else at once."""

    def __init__(self) -> None:
        self.closed = False
        self.may_close = threading.Event()
        self.may_close.set()
        self.begun: queue.SimpleQueue[str] = queue.SimpleQueue()

    async def answer(
        self,
        request: Generate,
        reply: Callable[[Token | Retrying], None],
        arrived_s: float,
        advance: Callable[[], None],
    ) -> Done | Failed:
        question = request.messages[-1].content
        self.begun.put(request.request_id)
        finish_reason = "stop"
        if question == "leak":
            raise asyncio.CancelledError
        if question == "break":
            raise ValueError(f"asked: {question}")
        if question == "wait":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.begun.put("closing")
                await asyncio.to_thread(self.may_close.wait, LIMIT_S)
                finish_reason = "cancelled"
        else:
            advance()
            reply(Token(request.request_id, 1, question))
        return Done(
            request.request_id, finish_reason, Usage(1, 1), Timings(), Provenance("cloud", "m")
        )

    async def close(self) -> None:
        self.closed = True


class Running:
    """A service on a thread of its own."""

    def __init__(self, service: CloudService) -> None:
        self.service = service
        self.outlet = Outlet(lambda: None)
        self.thread = threading.Thread(target=service.run, args=(self.outlet,), daemon=True)
        self.thread.start()

    def next(self) -> Any:
        return self.outlet.queue.get(timeout=LIMIT_S)

    def stop(self) -> None:
        self.service.stop()
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive()

    def rest(self) -> list[Any]:
        """What is left on the outlet after the stop."""
        items = []
        with contextlib.suppress(queue.Empty):
            while True:
                items.append(self.outlet.queue.get_nowait())
        return items


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture
def running(scripted: Scripted) -> Iterator[Running]:
    running = Running(CloudService(settings(), lambda _: scripted))
    yield running
    running.stop()


def question(request_id: str, content: str = "hello") -> Generate:
    return Generate(request_id, (ChatMessage("user", content),))


def skip_start(running: Running) -> None:
    assert isinstance(running.next(), Loading)
    assert running.next() == READY


def test_states_up_to_ready(running: Running, scripted: Scripted) -> None:
    assert running.next() == Loading("claude-test", "import anthropic", 0, 1)
    assert running.next() == READY
    running.stop()
    assert scripted.closed
    assert running.rest() == []


@pytest.mark.parametrize("key", ["", "  \n"])
def test_no_key_is_not_available_and_stops(key: str) -> None:
    running = Running(CloudService(settings(api_key=key), pytest.fail))
    state = running.next()
    assert isinstance(state, NotAvailable)
    assert "ANTHROPIC_API_KEY" in state.hint
    running.service.submit(question("r1"))
    failure = running.next()
    assert (failure.code, failure.request_id) == ("not_available", "r1")
    running.stop()


def test_switched_off_is_not_available_whoever_starts_it() -> None:
    running = Running(CloudService(settings(use="never"), pytest.fail))
    assert running.next() is NEVER
    running.service.submit(question("r1"))
    assert running.next().code == "not_available"
    running.stop()


def spend(dollars: float) -> None:
    """What another frontend's question cost."""
    ledger = Ledger(settings().home)
    ledger.write_sent(Sent("a", "", "r", 1, "https", "h", "/", "m", 1, "00"))
    ledger.write_outcome("a", Outcome("answered", 200, 1, 1, dollars))


def test_a_spent_budget_is_told_when_nothing_is_in_hand(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "BUDGET_POLL_S", 0.01)
    chosen = settings(model="claude-sonnet-5-5", daily_budget=1.0)
    running = Running(CloudService(chosen, lambda _: scripted))
    assert isinstance(running.next(), Loading)
    ready = running.next()
    assert isinstance(ready, Ready)
    running.service.submit(question("r1", "wait"))
    assert scripted.begun.get(timeout=LIMIT_S) == "r1"
    spend(1.5)
    running.service.cancel("r1")
    # First the answer that was in hand, then the state, which would have ended it.
    assert running.next().finish_reason == "cancelled"
    state = running.next()
    assert isinstance(state, NotAvailable)
    assert "Claude has cost $1.50 today" in state.reason
    chosen.home.joinpath("egress.jsonl").unlink()
    monkeypatch.setattr(Budget, "check", lambda self: None)  # midnight
    assert running.next() == ready
    running.stop()


def test_nothing_is_imported_while_the_budget_is_spent(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "BUDGET_POLL_S", 0.01)
    spend(1.5)
    chosen = settings(model="claude-sonnet-5-5", daily_budget=1.0)
    cloud = CloudService(chosen, lambda _: scripted)
    cloud.submit(question("r1"))
    running = Running(cloud)
    first = [running.next(), running.next()]
    assert {type(message) for message in first} == {NotAvailable, Done}
    monkeypatch.setattr(Budget, "check", lambda self: None)  # midnight
    assert isinstance(running.next(), Loading)
    assert isinstance(running.next(), Ready)
    assert scripted.begun.empty()  # what was asked meanwhile did not go out later
    running.stop()


def test_a_ledger_that_cannot_be_read_leaves_nobody_waiting(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(budget: Budget) -> None:
        raise OSError("input/output error")

    monkeypatch.setattr(Budget, "check", broken)
    cloud = CloudService(settings(daily_budget=1.0), lambda _: scripted)
    cloud.submit(question("r1"))
    running = Running(cloud)
    found = {running.next().request_id, running.next().request_id}
    assert found == {"", "r1"}
    running.stop()


@pytest.mark.parametrize("key", ["sk secret", "sk-sécret", "sk\x07secret"])
def test_a_key_that_no_header_can_carry_is_refused_without_repeating_it(key: str) -> None:
    running = Running(CloudService(settings(api_key=key), pytest.fail))
    running.next()
    state = running.next()
    running.stop()
    assert isinstance(state, Failed)
    assert state.code == "cloud_key_invalid"
    assert "cret" not in state.message + state.hint


def test_requests_answered_in_one_loop(running: Running) -> None:
    skip_start(running)
    running.service.submit(question("r1"))
    assert running.next() == Token("r1", 1, "hello")
    assert running.next().finish_reason == "stop"


def test_a_waiting_request_does_not_hold_up_others(running: Running, scripted: Scripted) -> None:
    skip_start(running)
    running.service.submit(question("slow", "wait"))
    running.service.submit(question("quick"))
    assert running.next().request_id == "quick"
    assert running.next().request_id == "quick"
    running.service.cancel("slow")
    done = running.next()
    assert (done.request_id, done.finish_reason) == ("slow", "cancelled")


def test_a_cancellation_that_nobody_asked_for_is_a_failure(running: Running) -> None:
    skip_start(running)
    running.service.submit(question("r1", "leak"))
    failure = running.next()
    assert isinstance(failure, Failed)
    assert (failure.code, failure.request_id) == ("internal", "r1")


def test_a_second_cancel_does_not_break_off_the_closing(
    running: Running, scripted: Scripted
) -> None:
    skip_start(running)
    scripted.may_close.clear()
    running.service.submit(question("r1", "wait"))
    assert scripted.begun.get(timeout=LIMIT_S) == "r1"
    running.service.cancel("r1")
    assert scripted.begun.get(timeout=LIMIT_S) == "closing"
    running.service.cancel("r1")
    running.service.submit(question("r2"))
    assert [running.next().request_id, running.next().request_id] == ["r2", "r2"]
    scripted.may_close.set()
    # What the backend gives after closing, not what the service gives for a dead task.
    assert running.next().usage == Usage(1, 1)


def test_a_late_cancel_changes_nothing(running: Running) -> None:
    skip_start(running)
    running.service.submit(question("r1"))
    assert isinstance(running.next(), Token)
    assert isinstance(running.next(), Done)
    running.service.cancel("r1")
    running.service.cancel("never asked")
    running.stop()
    assert running.rest() == []


class SlowImport:
    """A `connect` that lasts until it is let go."""

    def __init__(self, backend: Backend) -> None:
        self.begun = threading.Event()
        self.let_go = threading.Event()
        self._backend = backend

    def __call__(self, settings: Settings) -> Backend:
        self.begun.set()
        assert self.let_go.wait(LIMIT_S)
        return self._backend


def test_what_is_asked_before_the_start_and_during_the_import(scripted: Scripted) -> None:
    slow = SlowImport(scripted)
    service = CloudService(settings(), slow)
    for name in ("early", "early cancelled"):
        service.submit(question(name))
    service.cancel("early cancelled")
    running = Running(service)
    # Nothing has been imported yet, so these cancels did not wait for it.
    first = [running.next(), running.next()]
    assert Loading("claude-test", "import anthropic", 0, 1) in first
    (done,) = (message for message in first if isinstance(message, Done))
    assert (done.request_id, done.finish_reason) == ("early cancelled", "cancelled")
    assert slow.begun.wait(LIMIT_S)
    service.submit(question("during"))
    service.submit(question("during cancelled"))
    service.cancel("during cancelled")
    done = running.next()
    assert (done.request_id, done.finish_reason) == ("during cancelled", "cancelled")
    assert done.provenance == Provenance("cloud", "claude-test", engine="anthropic")
    slow.let_go.set()
    assert running.next() == READY
    answered = [running.next() for _ in range(4)]
    running.stop()
    assert {m.request_id for m in answered if isinstance(m, Done)} == {"early", "during"}
    assert running.rest() == []


def test_stop_does_not_wait_for_the_import(scripted: Scripted) -> None:
    slow = SlowImport(scripted)
    running = Running(CloudService(settings(), slow))
    running.next()
    assert slow.begun.wait(LIMIT_S)
    running.service.submit(question("r1"))
    running.stop()
    slow.let_go.set()
    (done,) = running.rest()
    assert (done.request_id, done.finish_reason) == ("r1", "cancelled")


def test_stop_cancels_everything(running: Running, scripted: Scripted) -> None:
    skip_start(running)
    for number in range(5):
        running.service.submit(question(f"r{number}", "wait"))
    for _ in range(5):
        scripted.begun.get(timeout=LIMIT_S)
    running.stop()
    rest = running.rest()
    assert sorted(done.request_id for done in rest) == [f"r{n}" for n in range(5)]
    assert {done.finish_reason for done in rest} == {"cancelled"}
    assert scripted.closed


def test_calls_after_the_end_do_no_harm(running: Running) -> None:
    running.stop()
    running.service.submit(question("r1"))
    running.service.cancel("r1")
    running.service.stop()


def test_a_bug_fails_one_request_and_is_logged_without_what_was_asked(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    skip_start(running)
    running.service.submit(question("r1", "break"))
    failure = running.next()
    assert (failure.code, failure.request_id) == ("internal", "r1")
    running.service.submit(question("r2"))
    assert running.next().request_id == "r2"
    running.stop()
    assert "ValueError" in caplog.text
    assert "asked: break" not in caplog.text + failure.message


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ShammahError("cloud_address_invalid", "m", "h"), "cloud_address_invalid"),
        (ImportError("No module named anthropic"), "cloud_client"),
        (ValueError("http://someone:secret@proxy"), "cloud_client"),
    ],
)
def test_a_client_that_cannot_be_made(
    error: Exception, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    def connect(_: Settings) -> Backend:
        raise error

    service = CloudService(settings(), connect)
    service.submit(question("r1"))
    running = Running(service)
    assert isinstance(running.next(), Loading)
    state = running.next()
    assert isinstance(state, Failed)
    assert (state.code, state.request_id) == (code, "")
    failure = running.next()
    assert (failure.code, failure.request_id) == (code, "r1")
    running.stop()
    assert "secret" not in state.message + state.hint + caplog.text


def test_the_sdk_is_imported_only_when_it_is_needed() -> None:
    program = (
        "import sys, workers.cloud.service, workers.cloud.request, workers.cloud.reading\n"
        "heavy = {'anthropic', 'httpx2', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported too early: {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
