"""What a frontend says of a worker that was killed because memory ran out while it answered."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from shammah.bus.messages import ChatMessage, Done, Failed, Token
from shammah.chat.conversation import Notice
from shammah.chat.session import Session
from shammah.router.decision import Override
from shammah.settings.load import load_settings
from shammah.supervision.oom_record import Attempt, attempt_file, write_attempt
from tests.fakes.sandbox import Sandbox
from tests.fakes.turns import way_of

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("echo_spawns")]

DIED = Notice("The inference worker died. The local model restarts and continues.")
QUESTION = (ChatMessage("user", "forever"),)


def killed_while_it_answers(
    sandbox: Sandbox, counter: Path, pid: int | None = None
) -> Failed | Notice:
    """What is said of it, if the worker has written down what real ones do; where another one
    goes on, that is interrupted."""
    session = Session(load_settings(os.environ, "starter"), os.environ, "test")
    try:
        killed = told = None
        for step in way_of(session, QUESTION, Override()):
            if isinstance(step, Token) and killed is None:
                holder = killed = sandbox.holder()
                assert holder
                attempt = Attempt("x", pid or holder, "big", 0, {str(counter): 4}, "Then less.")
                write_attempt(attempt_file(sandbox.endpoints.runtime), attempt)
                os.kill(holder, signal.SIGKILL)
            if isinstance(step, Notice) and told is None:
                told = step
                session.interrupt()
        again = [*way_of(session, (ChatMessage("user", "again"),), Override())][-1]
        assert isinstance(again, Done)
        if told is not None:
            return told
        assert isinstance(step, Failed)
        return step
    finally:
        session.close()


def test_it_names_the_model_and_what_comes_next(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "events").write_text("oom 9\noom_kill 5\n")
    failed = killed_while_it_answers(sandbox, tmp_path / "events")
    assert isinstance(failed, Failed)
    assert failed.code == "out_of_memory"
    assert failed.message == "The system killed big because memory ran out."
    assert failed.hint == "Then less. Ask again."


def test_any_other_death_is_told_as_before(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "events").write_text("oom 9\noom_kill 4\n")
    assert killed_while_it_answers(sandbox, tmp_path / "events") == DIED


def test_so_is_that_of_another_worker(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "events").write_text("oom 9\noom_kill 5\n")
    assert killed_while_it_answers(sandbox, tmp_path / "events", 7) == DIED
