"""Turns on the real starter model: one that loses its engine, and one that was read ahead."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest

from shammah.bus.messages import ChatMessage, Done, Failed, Ready, Sampling, Token
from shammah.chat.conversation import Notice, Waiting
from shammah.chat.session import Session
from shammah.router.decision import Override, RouteDecision, Target, View
from shammah.router.route import Question
from shammah.settings.load import load_settings
from shammah.supervision import lifecycle
from shammah.supervision.lifecycle import stop
from tests.fakes import unhurried
from tests.fakes.sandbox import Sandbox, until
from tests.fakes.turns import way_of
from tests.real.servers import llmock_server, messages_api_server

pytestmark = pytest.mark.timeout(600)

LIMIT_S = 100.0
GREEDY = Sampling(temperature=0.0)
TOKENS = 24
QUESTION = (ChatMessage("user", "Tell me about the sea, with an emoji in it."),)
TURNS = (
    ChatMessage("user", "Say something about the moon. " * 20),
    ChatMessage("assistant", "The moon goes round the earth. " * 20, private=True),
)


@pytest.fixture
def session(sandbox: Sandbox) -> Iterator[Session]:
    """As ``shammah ask`` has it: nothing but its questions starts a worker."""
    opened = Session(load_settings(os.environ, "starter"), os.environ, "ask")
    yield opened
    opened.interrupt()
    opened.close()
    stop("inference", sandbox.endpoints)


def ask(
    session: Session, sandbox: Sandbox, kill_at: int | None, tokens: int = TOKENS
) -> tuple[str, list[str], Done]:
    """The text, what was told about it, and its end. The worker is killed with SIGKILL once
    ``kill_at`` tokens have come (0: when the question is sent)."""
    text, notes, seen, killed = "", [], 0, False
    for step in way_of(session, QUESTION, Override(), GREEDY, tokens):
        match step:
            case Token():
                text, seen = text + step.text, seen + 1
            case Notice(note):
                notes.append(note)
            case Done():
                return text, notes, step
            case Failed():
                pytest.fail(step.message)
        # A message may bring several tokens; its index says how many there are.
        at = step.index if isinstance(step, Token) else 0
        if kill_at is None or killed or isinstance(step, Waiting) or at < kill_at:
            continue
        if isinstance(step, Token | RouteDecision):
            killed = True
            pid = sandbox.holder()
            assert pid
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: sandbox.holder() != pid, "it is dead")  # type: ignore[misc]
    raise AssertionError("no end")


def test_a_killed_engine_goes_on_with_the_same_words(session: Session, sandbox: Sandbox) -> None:
    """Greedy, the rest after a restart is what it would have been without."""
    whole, notes, done = ask(session, sandbox, None)
    assert not notes
    assert done.usage.output_tokens > 12
    told: list[str] = []
    last = done.usage.output_tokens - 1
    for kill_at in (0, 1, 4, 9, 15, last):
        text, notes, done_again = ask(session, sandbox, kill_at)
        # Where every token had come and only the end was lost, one more is asked for.
        assert text == whole or (kill_at == last and text.startswith(whole)), kill_at
        # None: its last words were on their way already. Then the next question meets a dead one.
        assert sum(note.endswith("goes on.") for note in notes) <= 1, kill_at
        assert done_again.provenance == done.provenance
        told += notes
    assert told
    assert all(note.startswith("The inference worker ") for note in told)  # died, or is not there


def test_what_was_read_ahead_is_not_computed_again(session: Session) -> None:
    session.start(cloud=False)
    until(lambda: isinstance(session.view().local, Ready), "ready", LIMIT_S)
    session.read_ahead(TURNS)
    until(lambda: not session.reads_ahead(), "it was read")
    *_, done = way_of(session, (*TURNS, *QUESTION), Override(), GREEDY, 2)
    assert isinstance(done, Done)
    own = 40  # tokens of the question with what the template puts around it
    assert done.usage.input_tokens > 200
    assert done.usage.input_tokens - done.usage.reused_tokens < own


def test_where_a_stream_of_the_cloud_breaks_the_local_model_goes_on(
    monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    """Real workers, and a server that ends its stream in good order after five pieces."""
    with llmock_server() as faulty:
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", faulty.base_url)
        settings = load_settings(os.environ, "starter")
        session = Session(settings, os.environ, "ask")
        decide = session.routing.decide

        def cloud_first(asked: Question, override: Override, view: View) -> RouteDecision | Failed:
            return decide(asked, replace(override, target=override.target or Target.CLOUD), view)

        monkeypatch.setattr(session.routing, "decide", cloud_first)
        faulty.script(
            {"type": "reply", "text": "one two three four five six"},
            {"type": "stream_fault", "kind": "truncate", "after_chunks": 5},
        )
        try:
            steps = list(way_of(session, QUESTION, Override(), GREEDY, TOKENS))
        finally:
            session.close()
            stop("inference", sandbox.endpoints)
            stop("cloud", sandbox.endpoints)
    assert isinstance(steps[-1], Done), steps[-1]
    assert steps[-1].provenance.role == "inference"
    pieces = [step.text for step in steps if isinstance(step, Token)]
    assert "".join(pieces).startswith("one two")
    assert "".join(pieces).count("one two") == 1
    notes = [step.text for step in steps if isinstance(step, Notice)]
    assert len(notes) == 1
    assert notes[0].endswith("The local model continues.")


def test_where_the_local_model_dies_a_server_goes_on(
    monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    """A real model behind the Messages API is asked with the answer so far, at several places."""
    unhurried_command = unhurried.command_of(lifecycle.worker_command)
    monkeypatch.setattr(lifecycle, "worker_command", unhurried_command)
    with messages_api_server() as url:
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        session = Session(load_settings(os.environ, "starter"), os.environ, "ask")
        try:
            for kill_at in (2, 9):
                session.start()
                until(lambda: isinstance(session.view().local, Ready), "ready", LIMIT_S)
                until(lambda: isinstance(session.view().cloud, Ready), "ready", LIMIT_S)
                text, notes, done = ask(session, sandbox, kill_at, 100)
                assert done.provenance.role == "cloud"
                assert notes == ["The inference worker died. Claude continues."]
                assert text.strip()
        finally:
            session.close()
            stop("inference", sandbox.endpoints)
            stop("cloud", sandbox.endpoints)
