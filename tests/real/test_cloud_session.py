"""A whole session and the cloud worker, as they are, with a scripted server: what a day may cost,
and answers that are long."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from shammah.bus.messages import ChatMessage, Done, Failed, NotAvailable, Ready, Token
from shammah.chat.conversation import Step, Waiting
from shammah.chat.session import Session
from shammah.privacy.ledger import read_ledger, verify_ledger
from shammah.router.decision import Override, Target
from shammah.router.route import RouteDecision
from shammah.settings.load import load_settings
from shammah.supervision import lifecycle
from shammah.supervision.lifecycle import WorkerSpec
from tests.fakes import frontend, impatient
from tests.fakes.sandbox import LIMIT_S, Sandbox, until
from tests.fakes.turns import way_of
from tests.real.recorder import Recorder

MODEL = "claude-sonnet-5-5"
HELLO = (ChatMessage("user", "hello"),)
CLOUD = Override(Target.CLOUD)


@pytest.fixture
def recorder(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """A server, and sessions whose cloud worker is real and whose local model is an echo."""
    server = Recorder(sandbox)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    real = impatient.command_of(lifecycle.worker_command)

    def command(spec: WorkerSpec) -> list[str]:
        return real(spec) if spec.role == "cloud" else frontend.echo_command(spec)

    monkeypatch.setattr(lifecycle, "worker_command", command)
    yield server
    for thread in threading.enumerate():  # one may be about to start a worker
        if thread.name.startswith("attach-"):
            thread.join(LIMIT_S)
    for child in lifecycle.children:
        child.kill()
        child.wait()
    server.close()


@contextlib.contextmanager
def open_session(sandbox: Sandbox, cloud: str) -> Iterator[Session]:
    """A session whose workers have said how they are, with these lines below ``[cloud]``."""
    (sandbox.shammah_home / "config.toml").write_text(f'[cloud]\nmodel = "{MODEL}"\n{cloud}\n')
    session = Session(load_settings(os.environ, "starter"), os.environ, "test")
    try:
        session.start()
        assert session.cloud is not None
        until(lambda: isinstance(session.local.state, Ready), "the local model is ready")
        known = (Ready, NotAvailable)
        until(lambda: isinstance(session.cloud.state, known), "the cloud's state")  # type: ignore
        yield session
    finally:
        session.close()


def ask(session: Session, override: Override, room: int | None = None) -> Iterator[Step]:
    for step in way_of(session, HELLO, override, max_new_tokens=room):
        assert not isinstance(step, Waiting), step
        yield step


def decision_and_end(steps: Iterator[Step]) -> tuple[Target | None, Done | Failed]:
    seen = list(steps)
    assert isinstance(seen[-1], Done | Failed)
    routed = [step.target for step in seen if isinstance(step, RouteDecision)]
    return routed[-1] if routed else None, seen[-1]


def cloud_says(session: Session, kind: type[object]) -> None:
    cloud = session.cloud
    assert cloud is not None
    until(lambda: isinstance(cloud.state, kind), f"the cloud is {kind.__name__}")


def test_nothing_is_sent_once_the_day_has_cost_its_budget(
    sandbox: Sandbox, recorder: Recorder
) -> None:
    """The answer that crosses the limit is finished; then nobody gets another, by whichever
    way and in whichever terminal, until more is allowed."""
    price = "input_price = 1.0\noutput_price = 1.0\n"
    recorder.usage = {"input_tokens": 400_000, "output_tokens": 300_000}  # 0.70 dollars
    with open_session(sandbox, f"{price}daily_budget = 1.0") as session:
        for _ in range(2):
            target, end = decision_and_end(ask(session, CLOUD))
            assert target is Target.CLOUD
            assert isinstance(end, Done)
        cloud_says(session, NotAvailable)
        target, end = decision_and_end(ask(session, CLOUD))
        assert isinstance(end, Failed)
        assert "Claude has cost $1.40 today" in end.message
        target, end = decision_and_end(ask(session, Override()))
        assert target is Target.LOCAL  # it is there, and the cloud is out of the question
        assert isinstance(end, Done)
        # The door itself, for a frontend that would not listen.
        peer = session.cloud.peer  # type: ignore[union-attr]
        assert peer is not None
        assert [type(reply) for reply in peer.generate(HELLO)][-1] is Failed
    with open_session(sandbox, f"{price}daily_budget = 1.0") as another:
        cloud_says(another, NotAvailable)
        assert isinstance(decision_and_end(ask(another, CLOUD))[1], Failed)
    assert len(recorder.bodies) == len(read_ledger(sandbox.shammah_home)[0]) == 2
    with open_session(sandbox, f"{price}daily_budget = 2.0") as richer:
        cloud_says(richer, Ready)
        assert isinstance(decision_and_end(ask(richer, CLOUD))[1], Done)
    assert len(recorder.bodies) == 3


def test_a_long_answer_comes_as_a_stream(sandbox: Sandbox, recorder: Recorder) -> None:
    """Of that length the SDK allows no other way (what could take ten minutes); and its beginning
    is there before the server has said the rest."""
    recorder.behaviours = ["wait"]
    with open_session(sandbox, "") as session:
        pieces = []
        for step in ask(session, CLOUD, room=100_000):
            if isinstance(step, Token):
                pieces.append(step.text)
                recorder.go_on.set()  # only now
        assert isinstance(step, Done), step
        assert "".join(pieces) == "cloud answer 1 and the rest"
    (body,) = map(json.loads, recorder.bodies)
    assert (body["stream"], body["max_tokens"]) == (True, 100_000)


@pytest.mark.parametrize("behaviour", ["wait", "think"])
@pytest.mark.parametrize("by_signal", [False, True])
def test_an_answer_that_a_stop_has_cut_short_is_a_failure(
    sandbox: Sandbox, recorder: Recorder, behaviour: str, by_signal: bool
) -> None:
    """Nobody has cancelled it, so it must not look like one that was."""
    recorder.behaviours = [behaviour]

    def end_worker() -> None:
        until(lambda: recorder.bodies, "the question is on its way")
        if behaviour == "wait":
            assert spoken.wait(LIMIT_S)
        if by_signal:
            os.kill(sandbox.holders()["cloud"], signal.SIGTERM)
        else:
            lifecycle.stop("cloud", sandbox.endpoints)

    spoken = threading.Event()
    ending = threading.Thread(target=end_worker, name="ending")
    with open_session(sandbox, "") as session:
        ending.start()
        pieces = []
        for step in ask(session, CLOUD):
            if isinstance(step, Token):
                pieces.append(step.text)
                spoken.set()
        ending.join()
    assert isinstance(step, Failed), step
    assert step.code == "worker_stopped"
    assert "was stopped" in step.message
    assert "".join(pieces) == ("cloud answer 1" if behaviour == "wait" else "")
    entries, _ = read_ledger(sandbox.shammah_home)
    assert [entry.outcome for entry in entries] == ["cancelled"]
    verified = verify_ledger(sandbox.shammah_home).report
    assert (verified.damage, verified.links, verified.behind) == ((), 2, 0)
