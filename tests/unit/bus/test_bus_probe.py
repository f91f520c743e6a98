"""One question to a worker about itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest

from shammah.bus import probe
from shammah.bus.endpoints import Endpoints
from shammah.bus.messages import Event, Failed, GetStatus, Replay, Replayed
from shammah.bus.probe import ask_events, ask_status
from shammah.errors import ShammahError
from tests.fakes.sandbox import LIMIT_S, Sandbox
from tests.fakes.scripted_worker import ScriptedWorker, event

pytestmark = pytest.mark.timeout(300)

Found = TypeVar("Found")


class Asking(threading.Thread):
    """A question on a thread of its own; `end` is what came of it."""

    def __init__(self, ask: Callable[[Endpoints, str], Found], endpoints: Endpoints) -> None:
        super().__init__(name="work-asking")
        self._ask = ask
        self._endpoints = endpoints
        self._found: object = None
        self.start()

    def run(self) -> None:
        try:
            self._found = self._ask(self._endpoints, "inference")
        except ShammahError as error:
            self._found = error

    def end(self) -> object:
        self.join(LIMIT_S)
        return self._found


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "ANSWER_S", LIMIT_S)


@pytest.mark.usefixtures("patient")
class TestAnEnquiry:
    def test_has_the_status(self, sandbox: Sandbox) -> None:
        worker = ScriptedWorker(sandbox)
        asking = Asking(ask_status, sandbox.endpoints)
        told = replace(event(7), request_id=worker.expect(GetStatus).request_id)
        worker.reply(told)
        assert asking.end() == told
        worker.close()

    def test_has_the_events(self, sandbox: Sandbox) -> None:
        worker = ScriptedWorker(sandbox)
        asking = Asking(ask_events, sandbox.endpoints)
        request = worker.expect(Replay)
        assert request.since_seq == 0
        worker.reply(Replayed(request.request_id, (event(1), event(2))))
        found = asking.end()
        assert isinstance(found, Replayed)
        assert found.events == (event(1), event(2))
        worker.close()

    def test_is_sent_once_and_waits_for_a_worker_that_is_just_coming(
        self, sandbox: Sandbox
    ) -> None:
        asking = Asking(ask_status, sandbox.endpoints)
        worker = ScriptedWorker(sandbox)
        worker.expect(GetStatus)
        worker.reply(event(1))
        assert isinstance(asking.end(), Event)
        assert not worker.hears()
        worker.close()

    def test_says_what_the_worker_says_is_wrong(self, sandbox: Sandbox) -> None:
        worker = ScriptedWorker(sandbox)
        asking = Asking(ask_status, sandbox.endpoints)
        request = worker.expect(GetStatus)
        worker.reply(Failed("protocol", "Not understood.", "Update.", request.request_id))
        error = asking.end()
        assert isinstance(error, ShammahError)
        assert (error.code, error.hint) == ("protocol", "Update.")
        worker.close()

    def test_that_finds_a_worker_at_its_end_says_that_it_has_gone(self, sandbox: Sandbox) -> None:
        """It reads nothing more, and need not be waited for when its lock is free."""
        worker = ScriptedWorker(sandbox)
        asking = Asking(ask_status, sandbox.endpoints)
        worker.expect(GetStatus)
        worker.close()
        error = asking.end()
        assert isinstance(error, ShammahError)
        assert error.code == probe.GONE

    def test_is_sent_again_to_the_worker_that_follows(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        holders = iter((1, 1))
        monkeypatch.setattr(probe, "lock_holder", lambda path: next(holders, 2))
        worker = ScriptedWorker(sandbox)
        asking = Asking(ask_status, sandbox.endpoints)
        worker.expect(GetStatus)  # unread, as it were
        worker.expect(GetStatus)
        worker.reply(event(1))
        assert isinstance(asking.end(), Event)
        worker.close()


def test_silence_is_an_error_that_says_what_to_do(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "ANSWER_S", 0.05)
    with pytest.raises(ShammahError) as silent:
        ask_status(sandbox.endpoints, "inference")
    assert silent.value.code == "worker_silent"
    assert "shammah stop inference" in silent.value.hint
