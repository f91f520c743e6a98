"""What ``shammah ask`` keeps: the question before it is asked, whatever ends the program."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from shammah.chat.conversation import Turn
from shammah.history.store import Store
from tests.fakes.command import SHAMMAH, WITH_STAND_INS, run
from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import LIMIT_S, Sandbox
from tests.fakes.terminal import Record as Asked

pytestmark = pytest.mark.timeout(300)

StartEcho = Callable[..., EchoProcess]

ASK = ("ask", "--model", "starter")


@pytest.fixture
def path(sandbox: Sandbox) -> Path:
    return sandbox.shammah_home / "history.db"


def kept(path: Path) -> list[tuple[int, list[Turn]]]:
    """Each conversation, oldest first, with its turns."""
    store = Store(path)
    talks = [store.read(number) for number in store.numbers()]
    store.close()
    return [(talk.number, list(talk.turns)) for talk in talks if talk]


def begin(question: str) -> subprocess.Popen[bytes]:
    """An ``ask`` in the midst of its answer."""
    asking = subprocess.Popen(
        [*SHAMMAH, *ASK, question],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert asking.stdout is not None
    asking.stdout.read(1)
    return asking


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_that_is_ended_in_mid_answer_goes_on_with_continue(
    start_echo: StartEcho, path: Path, record: Asked, sandbox: Sandbox, number: signal.Signals
) -> None:
    steer = sandbox.root / "steer"
    steer.touch()
    start_echo("--steer", str(steer), "--record", str(record.path))
    run(*ASK, "an older one")
    steer.write_text("--pause-after 2")
    asking = begin("what are tides?")
    asking.send_signal(number)
    _, said = asking.communicate(timeout=LIMIT_S)
    assert b"Traceback" not in said
    killed = number is signal.SIGKILL
    assert asking.returncode == (-number if killed else 128 + number)
    turn = kept(path)[-1][1][-1]
    assert (turn.question, turn.finish, turn.complete) == ("what are tides?", "left", False)
    assert turn.answer == "" if killed else turn.answer.startswith("what")
    ended = run(*ASK, "--continue", "shorter")
    assert re.search(r"Continuing conversation 2 of .* \(1 turn\): what are tides", ended.err)
    said_before = [text for _, text in record.conversations[-1]]
    if killed:
        assert said_before == ["what are tides?\n\nshorter"]
    else:
        assert said_before == ["what are tides?", turn.answer, "shorter"]


def test_keeps_its_question_before_the_answer_begins(start_echo: StartEcho, path: Path) -> None:
    start_echo("--delay-ms", "5")
    asking = begin("forever tides")
    ((_, (turn,)),) = kept(path)
    assert (turn.question, turn.answer, turn.finish) == ("forever tides", "", "left")
    asking.send_signal(signal.SIGINT)
    asking.communicate(timeout=LIMIT_S)
    ((_, (turn,)),) = kept(path)
    assert (turn.question, turn.finish) == ("forever tides", "cancelled")
    assert turn.answer.startswith("forever")
    assert turn.provenance is not None
    assert (turn.provenance.model, turn.usage.output_tokens >= 1) == ("starter", True)


def test_a_question_that_fails_is_kept_without_an_answer(path: Path, start_echo: StartEcho) -> None:
    start_echo()
    assert run(*ASK, "fail").code == 1
    assert run("ask", "--cloud", "hello").code == 1
    turns = [turn for _, turns in kept(path) for turn in turns]
    assert [(turn.question, turn.answer, turn.finish) for turn in turns] == [
        ("fail", "fail", "failed"),
        ("hello", "", "failed"),
    ]
    assert "no answer" in run("history", "show", "2").out


def test_a_question_that_still_waits_for_a_model_is_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "--load-for-ever")
    asking = subprocess.Popen(
        [*WITH_STAND_INS, *ASK, "what are tides?"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert asking.stderr is not None
    while b"Loading" not in asking.stderr.readline():
        pass
    asking.send_signal(signal.SIGTERM)
    _, said = asking.communicate(timeout=LIMIT_S)
    assert (asking.returncode, b"Traceback" in said) == (128 + signal.SIGTERM, False)
    ((_, (turn,)),) = kept(path)
    assert (turn.question, turn.answer, turn.finish) == ("what are tides?", "", "left")


def test_a_hang_up_that_is_to_be_ignored_is_ignored(
    start_echo: StartEcho, sandbox: Sandbox
) -> None:
    start_echo()
    file = sandbox.root / "on"
    asking = subprocess.Popen(
        [*SHAMMAH, *ASK, f"what until:{file}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),  # as nohup does
    )
    assert asking.stdout is not None
    first = os.read(asking.stdout.fileno(), 1)  # what is buffered would be lost
    asking.send_signal(signal.SIGHUP)
    file.touch()
    rest, _ = asking.communicate(timeout=LIMIT_S)
    assert (asking.returncode, (first + rest).decode()) == (0, f"what until:{file}\n")


@pytest.mark.parametrize("as_json", [False, True])
def test_an_answer_of_thoughts_alone_is_a_failure_and_is_kept(
    start_echo: StartEcho, path: Path, as_json: bool
) -> None:
    start_echo("--think")
    ended = run(*ASK, "what are tides?", *(["--json"] if as_json else []))
    assert ended.code == 1
    assert "reached the limit of 3 tokens before it began to answer: it was still thinking." in (
        ended.err
    )
    assert "Start a new conversation, or have it think less (inference.think_tokens)." in ended.err
    if as_json:
        told = json.loads(ended.out)
        assert (told["text"], told["finish_reason"]) == ("", "length")
        assert (told["error"]["code"], told["usage"]["output_tokens"]) == ("answer_empty", 3)
    else:
        assert ended.out == ""
    ((_, (turn,)),) = kept(path)
    assert (turn.question, turn.answer, turn.finish) == ("what are tides?", "", "length")
    assert turn.provenance is not None
    assert turn.provenance.model == "starter"
    again = run(*ASK, "--continue", "well?")
    assert "Continuing conversation 1" in again.err


def test_that_nobody_may_write_down_is_said(start_echo: StartEcho, path: Path) -> None:
    start_echo()
    run(*ASK, "one")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    ended = run(*ASK, "two")
    assert (ended.code, ended.out) == (0, "two\n")
    assert "Saving this turn: waiting for the history file" in ended.err
    assert ended.err.count("This turn was not stored in the history.") == 1
    assert f"{path} is locked by another program." in ended.err
    other.execute("ROLLBACK")
    other.close()
    assert [turn.question for _, turns in kept(path) for turn in turns] == ["one"]


def test_that_waits_for_another_writer_is_kept(start_echo: StartEcho, path: Path) -> None:
    start_echo()
    run(*ASK, "one")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    asking = subprocess.Popen(
        [*SHAMMAH, *ASK, "two"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert asking.stderr is not None
    while "waiting for the history file" not in asking.stderr.readline():
        pass
    other.execute("ROLLBACK")
    other.close()
    _, said = asking.communicate(timeout=LIMIT_S)
    assert (asking.returncode, "not stored in the history" in said) == (0, False)
    assert [turn.question for _, turns in kept(path) for turn in turns] == ["one", "two"]
