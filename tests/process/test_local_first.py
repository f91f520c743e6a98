"""A question is routed on what is known, whoever speaks first and however late.

Workers are held back with SIGSTOP, so each delay is as long as the test wants: until the other
worker has long been ready, and for some looks more.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from shammah.bus.messages import Done, Failed, Initializing, Ready
from shammah.chat import session as session_module
from shammah.chat.conversation import Notice, Step, Waiting
from shammah.chat.session import Session, tell_silence
from shammah.router.decision import Override, Reason, Target
from shammah.router.route import RouteDecision
from shammah.settings.load import load_settings
from tests.fakes.asked import Asked
from tests.fakes.command import WITH_STAND_INS
from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import LIMIT_S, Sandbox, until

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("echo_spawns"),
]

StartEcho = Callable[..., EchoProcess]
Open = Callable[[], Session]

LOOKS = 3
"""A question that waits looks again so often before the worker may speak."""


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-1")


@pytest.fixture
def open_session() -> Iterator[Open]:
    sessions: list[Session] = []

    def make() -> Session:
        sessions.append(Session(load_settings(os.environ, "starter"), os.environ, "test"))
        return sessions[-1]

    yield make
    for session in sessions:
        session.interrupt()
        session.close()


@pytest.fixture
def local(start_echo: StartEcho) -> EchoProcess:
    """The local model's worker, which is ready."""
    worker = start_echo()
    until(lambda: isinstance(worker.status().status.state, Ready), "the local model is ready")
    return worker


def cloud_is_ready(session: Session) -> bool:
    return session.cloud is not None and isinstance(session.cloud.state, Ready)


def ask(session: Session, override: Override | None = None) -> Asked:
    return Asked(session, "hello", override or Override())


def waits_for(asked: Asked, role: str, looks: int = LOOKS) -> None:
    """It is not routed for so many looks, and says what it waits for."""
    while looks:
        step = asked.steps.get(timeout=LIMIT_S)
        assert isinstance(step, Waiting), step
        looks -= step.role == role


def routed(asked: Asked) -> tuple[Target, Reason]:
    step = asked.wait_for(RouteDecision)
    assert isinstance(step, RouteDecision)
    return step.target, step.reason


def test_a_question_waits_for_a_worker_that_is_there_and_has_not_spoken(
    open_session: Open, local: EchoProcess
) -> None:
    local.freeze()
    session = open_session()
    session.start()
    until(lambda: cloud_is_ready(session), "the cloud is ready")
    asked = ask(session)
    waits_for(asked, "inference")
    assert session.local.state is None
    local.thaw()
    assert routed(asked) == (Target.LOCAL, Reason.MODEL_READY)
    assert isinstance(asked.end(), Done)


def test_a_cloud_that_speaks_late_changes_nothing(
    open_session: Open, local: EchoProcess, start_echo: StartEcho
) -> None:
    cloud = start_echo(role="cloud", model="claude")
    cloud.freeze()
    session = open_session()
    assert routed(ask(session)) == (Target.LOCAL, Reason.MODEL_READY)
    cloud.thaw()


def test_the_first_word_may_be_that_it_is_not_ready(
    open_session: Open, start_echo: StartEcho
) -> None:
    worker = start_echo("--load-for-ever")
    worker.freeze()
    session = open_session()
    session.start()
    until(lambda: cloud_is_ready(session), "the cloud is ready")
    asked = ask(session)
    waits_for(asked, "inference")
    worker.thaw()
    assert routed(asked) == (Target.CLOUD, Reason.MODEL_NOT_READY)


def test_where_no_worker_is_there_the_cloud_answers_at_once(
    open_session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known not to be ready, however late the one that is started speaks."""
    monkeypatch.setenv("STAND_IN_INFERENCE", "--load-for-ever")
    session = open_session()
    session.start()
    until(lambda: isinstance(session.local.state, Initializing), "it is known not to be there")
    assert routed(ask(session)) == (Target.CLOUD, Reason.MODEL_NOT_READY)


def test_a_worker_that_stays_silent_is_waited_for_once(
    open_session: Open, local: EchoProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "UNHEARD_LOOKS", LOOKS)
    local.freeze()
    session = open_session()
    asked = ask(session)
    assert asked.wait_for(Notice) == tell_silence("inference")
    assert routed(asked) == (Target.CLOUD, Reason.MODEL_SILENT)
    assert isinstance(asked.end(), Done)
    again = ask(session)
    steps: list[Step] = []
    while not isinstance(step := again.steps.get(timeout=LIMIT_S), RouteDecision):
        assert step is not None
        steps.append(step)
    assert not [step for step in steps if isinstance(step, Notice)]
    assert step.reason is Reason.MODEL_SILENT
    again.end()
    local.thaw()
    until(lambda: isinstance(session.local.state, Ready), "it is heard after all")
    assert routed(ask(session)) == (Target.LOCAL, Reason.MODEL_READY)


def test_a_private_question_waits_for_as_long_as_it_takes(
    open_session: Open, local: EchoProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "UNHEARD_LOOKS", 1)
    local.freeze()
    session = open_session()
    asked = ask(session, Override(private=True))
    waits_for(asked, "inference")
    local.thaw()
    assert routed(asked) == (Target.LOCAL, Reason.PRIVATE)


def test_an_interrupt_ends_the_wait(open_session: Open, local: EchoProcess) -> None:
    local.freeze()
    session = open_session()
    asked = ask(session)
    waits_for(asked, "inference", 1)
    session.interrupt()
    end = asked.end()
    assert isinstance(end, Failed)
    assert end.code == "cancelled"
    local.thaw()


def test_after_a_death_the_next_worker_is_waited_for_once_it_is_there(
    open_session: Open, local: EchoProcess, start_echo: StartEcho, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two frontends: the other one has started the worker again, and it is ready already."""
    session = open_session()
    assert routed(ask(session)) == (Target.LOCAL, Reason.MODEL_READY)
    with monkeypatch.context() as slower:
        slower.setattr(session.local, "start", lambda **how: None)  # the other one is faster
        local.kill()
        until(lambda: session.local.state is None, "the loss is seen")
        follower = start_echo()
        until(lambda: isinstance(follower.status().status.state, Ready), "the next one is ready")
        until(lambda: isinstance(session.local.state, Ready), "it is heard")
    assert routed(ask(session)) == (Target.LOCAL, Reason.MODEL_READY)


@pytest.mark.parametrize("late", ["inference", "cloud"])
def test_ask_waits_for_whichever_speaks_late(
    late: str, local: EchoProcess, start_echo: StartEcho, sandbox: Sandbox
) -> None:
    cloud = start_echo(role="cloud", model="claude")
    until(lambda: isinstance(cloud.status().status.state, Ready), "the cloud is ready")
    held, other = (local, cloud) if late == "inference" else (cloud, local)
    held.freeze()
    command = [*WITH_STAND_INS, "ask", "--model", "starter", "--json", "hello"]
    asked = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    until(lambda: other.status().status.clients, "it is attached to the other one")
    held.send(signal.SIGCONT)
    out, err = asked.communicate(timeout=LIMIT_S)
    assert json.loads(out)["target"] == "local", err
