"""Turns that lose their backend: who goes on, with stand-ins that are killed and stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from shammah.bus import client
from shammah.bus.messages import ChatMessage, Done, Failed, Ready, Token
from shammah.chat.conversation import Notice, Step
from shammah.chat.session import Session
from shammah.router.decision import Override, Reason, RouteDecision, Target, View
from shammah.router.route import Question
from shammah.settings.load import load_settings
from shammah.supervision import lifecycle
from shammah.supervision.lifecycle import stop
from tests.fakes.sandbox import Sandbox, until
from tests.fakes.terminal import Record
from tests.fakes.turns import way_of

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("echo_spawns")]

WORDS = " ".join(f"word{number}" for number in range(40))
LOCAL, CLOUD = "inference", "cloud"


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox) -> Iterator[Session]:
    """With a key, and both workers there."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-1")
    for role in (LOCAL, CLOUD):
        steer = sandbox.root / f"{role}.steer"
        steer.touch()
        options = f"--delay-ms 10 --record {sandbox.root}/{role} --steer {steer}"
        monkeypatch.setenv(f"STAND_IN_{role.upper()}", options)
    opened = Session(load_settings(os.environ, "starter"), os.environ, "test")
    opened.start()
    for look in (lambda: opened.view().local, lambda: opened.view().cloud):
        until(lambda look=look: isinstance(look(), Ready), "ready")  # type: ignore[misc]
    yield opened
    opened.interrupt()
    opened.close()


class Told:
    """All steps of a turn; the first backend is hit at the ``at``-th token, where it waits."""

    def __init__(
        self,
        session: Session,
        sandbox: Sandbox,
        role: str,
        at: int,
        override: Override | None = None,
        question: ChatMessage | None = None,
        hit: Callable[[int], None] = kill,
        on_notice: Callable[[], None] = lambda: None,
    ) -> None:
        asked = question or ChatMessage("user", WORDS)
        (sandbox.root / f"{role}.steer").write_text(f"--pause-after {at}")
        self.steps: list[Step] = []
        for step in way_of(session, (asked,), override or Override()):
            self.steps.append(step)
            if isinstance(step, Notice):
                on_notice()
            if isinstance(step, Token) and sum(isinstance(s, Token) for s in self.steps) == at:
                pid = sandbox.holder(role)
                assert pid
                hit(pid)

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps if isinstance(step, Token))

    @property
    def notes(self) -> list[str]:
        return [step.text for step in self.steps if isinstance(step, Notice)]

    @property
    def route(self) -> list[tuple[Target, Reason]]:
        routed = [step for step in self.steps if isinstance(step, RouteDecision)]
        return [(decision.target, decision.reason) for decision in routed]

    @property
    def end(self) -> Done | Failed:
        assert isinstance(self.steps[-1], Done | Failed)
        return self.steps[-1]


@pytest.mark.parametrize("at", [1, 2, 13, 39])
def test_claude_goes_on_where_the_local_model_died(
    session: Session, sandbox: Sandbox, at: int
) -> None:
    told = Told(session, sandbox, LOCAL, at)
    assert told.text == WORDS
    assert told.notes == ["The inference worker died. Claude continues."]
    assert told.route == [
        (Target.LOCAL, Reason.MODEL_READY),
        (Target.CLOUD, Reason.MODEL_NOT_READY),
    ]
    assert isinstance(told.end, Done)
    assert told.end.provenance.role == CLOUD


@pytest.mark.parametrize("at", [1, 20])
def test_the_local_model_goes_on_where_a_worker_of_the_cloud_died(
    session: Session, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    decide = session.routing.decide

    def cloud_first(asked: Question, override: Override, view: View) -> RouteDecision | Failed:
        """As after bad local answers."""
        return decide(asked, replace(override, target=override.target or Target.CLOUD), view)

    monkeypatch.setattr(session.routing, "decide", cloud_first)
    told = Told(session, sandbox, CLOUD, at)
    assert told.text == WORDS
    assert told.notes == ["The cloud worker died. The local model continues."]
    assert isinstance(told.end, Done)
    assert told.end.provenance.role == LOCAL


@pytest.mark.parametrize(
    ("override", "question"),
    [
        (Override(private=True), ChatMessage("user", WORDS)),
        (Override(Target.LOCAL), ChatMessage("user", WORDS)),
        (Override(), ChatMessage("user", WORDS, True)),
        (Override(), ChatMessage("user", f"{WORDS} jo@acme.de")),
    ],
)
def test_what_must_stay_goes_on_here(
    session: Session, sandbox: Sandbox, override: Override, question: ChatMessage
) -> None:
    told = Told(session, sandbox, LOCAL, 7, override, question)
    assert told.text == question.content
    assert {target for target, _ in told.route} == {Target.LOCAL}
    assert not (sandbox.root / CLOUD).exists()


def test_a_worker_that_hangs_is_ended_and_another_goes_on(
    session: Session, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = client.SILENCE_S
    monkeypatch.setattr(lifecycle, "STOP_S", 4.0)
    hung = sandbox.holder()

    def hang(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(client, "SILENCE_S", 2.0)

    def calm_down() -> None:  # the next worker may take its time
        monkeypatch.setattr(client, "SILENCE_S", patience)

    override = Override(Target.LOCAL)
    told = Told(session, sandbox, LOCAL, 7, override, hit=hang, on_notice=calm_down)
    assert told.text == WORDS
    assert told.notes == [
        "The inference worker stopped responding. The local model restarts and continues."
    ]
    assert sandbox.holder() not in (None, hung)


def test_a_worker_that_always_dies_is_given_up(
    session: Session, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    session.close()
    monkeypatch.setenv("STAND_IN_INFERENCE", "--crash-after 3")
    stop(LOCAL, sandbox.endpoints)
    again = Session(load_settings(os.environ, "starter"), os.environ, "ask", local_only=True)
    try:
        steps = list(way_of(again, (ChatMessage("user", WORDS),), Override()))
    finally:
        again.close()
    assert sum(isinstance(step, Notice) for step in steps) == 2
    assert "".join(s.text for s in steps if isinstance(s, Token)) == " ".join(WORDS.split()[:9])
    assert isinstance(steps[-1], Failed)
    assert steps[-1].code == "worker_died"


def test_an_interrupt_ends_a_restart(session: Session, sandbox: Sandbox) -> None:
    told = Told(session, sandbox, LOCAL, 1, Override(Target.LOCAL), on_notice=session.interrupt)
    assert isinstance(told.end, Failed)
    assert told.end.code == "cancelled"


def test_turns_are_read_ahead(session: Session, sandbox: Sandbox) -> None:
    turns = (ChatMessage("user", "secret", True), ChatMessage("assistant", "yes", True))
    session.read_ahead(turns)
    until(lambda: not session.reads_ahead(), "read")
    ahead = Record(sandbox.root / "inference.ahead")
    assert ahead.conversations == [[("user", "secret"), ("assistant", "yes")]]
