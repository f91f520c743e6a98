"""One question's way through a session, with workers that come, go and die."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from shammah.bus import client, codec, probe
from shammah.bus.client import Peer
from shammah.bus.connection import Connection
from shammah.bus.messages import Detach, Done, Failed, Loading, Ready, Token
from shammah.chat.conversation import Notice, Waiting
from shammah.chat.session import Session
from shammah.router.decision import Override, Target
from shammah.router.route import RouteDecision
from shammah.settings.load import load_settings
from shammah.supervision import lifecycle
from shammah.supervision.lifecycle import RESTARTS, stop
from tests.fakes.asked import Asked
from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import LIMIT_S, Sandbox, until

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("echo_spawns"),
]

StartEcho = Callable[..., EchoProcess]
Connect = Callable[..., Peer]
Open = Callable[..., Session]


@pytest.fixture
def open_session() -> Iterator[Open]:
    """Makes sessions as the REPL does."""
    sessions: list[Session] = []

    def make(model: str = "starter", program: str = "test", **options: bool) -> Session:
        settings = load_settings(os.environ, model)
        sessions.append(Session(settings, os.environ, program, **options))
        return sessions[-1]

    yield make
    for session in sessions:
        session.interrupt()
        session.close()


def ask(session: Session, text: str, override: Override | None = None) -> Asked:
    return Asked(session, text, override or Override())


def answer(session: Session, text: str, override: Override | None = None) -> Done | Failed:
    return ask(session, text, override).end()


def test_a_question_starts_the_worker_and_is_answered(open_session: Open) -> None:
    asked = ask(open_session(), "hello")
    assert isinstance(asked.wait_for(Waiting), Waiting)
    routed = asked.wait_for(RouteDecision)
    assert isinstance(routed, RouteDecision)
    assert routed.target is Target.LOCAL
    assert isinstance(asked.end(), Done)


def test_a_question_waits_for_loading_and_sees_its_stages(
    open_session: Open, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    enough = sandbox.root / "enough"
    monkeypatch.setenv("STAND_IN", f"--load-until {enough}")
    asked = ask(open_session(), "hello")
    while not isinstance(step := asked.steps.get(timeout=LIMIT_S), RouteDecision):
        assert isinstance(step, Waiting)
        if isinstance(step.state, Loading):
            enough.touch()
    assert enough.exists()
    assert isinstance(asked.end(), Done)


def test_a_worker_killed_in_mid_answer_is_started_again_and_goes_on(
    open_session: Open, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    monkeypatch.setenv("STAND_IN", "--delay-ms 20")
    session = open_session()
    asked = ask(session, "forever one two")
    first = asked.wait_for(Token)
    killed = sandbox.holder()
    assert killed
    os.kill(killed, signal.SIGKILL)
    text, notice = first.text, None  # type: ignore[union-attr]
    while len(text) < 400:
        match asked.steps.get(timeout=LIMIT_S):
            case Token(text=piece):
                text += piece
            case Notice() as notice:
                pass
    session.interrupt()
    end = asked.end()
    assert isinstance(end, Done)
    assert end.finish_reason == "cancelled"
    assert notice == Notice("The inference worker died. The local model restarts and continues.")
    assert text == ("forever one two " * 99)[: len(text)]
    assert sandbox.holder() != killed


def test_a_worker_killed_between_questions_is_back_before_the_next(
    open_session: Open, sandbox: Sandbox
) -> None:
    session = open_session()
    assert isinstance(answer(session, "one"), Done)
    killed = sandbox.holder()
    assert killed
    os.kill(killed, signal.SIGKILL)
    until(lambda: sandbox.holder() not in (None, 0, killed), "it is started by itself")
    until(lambda: isinstance(session.view().local, Ready), "it is ready")


@pytest.mark.parametrize("program", ["ask", "repl"])
def test_a_worker_that_dies_at_each_load_ends_the_question_that_waits_for_it(
    open_session: Open, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setenv("STAND_IN", "--crash-loading")
    end = answer(open_session(program=program), "hello")
    assert isinstance(end, Failed)
    assert end.code in ("worker_crashes", "worker_start_failed")


def test_a_worker_that_was_stopped_is_not_started_until_it_is_needed(
    open_session: Open, sandbox: Sandbox
) -> None:
    session = open_session()
    changes = threading.Semaphore(0)
    assert isinstance(answer(session, "one"), Done)
    session.watch(changes.release)
    stop("inference", sandbox.endpoints)
    until(lambda: not session.local.attached, "the frontend has seen it")
    assert changes.acquire(timeout=LIMIT_S)
    assert sandbox.holder() is None
    assert session.local.resting
    assert isinstance(answer(session, "two"), Done)


def test_a_question_that_waits_does_not_wait_for_a_worker_that_was_stopped(
    open_session: Open, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    """It has the worker started again, or ends; it does not wait for what will not come."""
    monkeypatch.setenv("STAND_IN", "--load-for-ever")
    session = open_session()
    asked = ask(session, "hello")
    until(lambda: session.local.attached, "attached")
    monkeypatch.setenv("STAND_IN", "")
    stop("inference", sandbox.endpoints)
    assert asked.end()


def test_a_worker_that_keeps_dying_is_given_up_and_tried_again_on_demand(
    open_session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "--crash-on-question")
    session = open_session()
    end = answer(session, "die")
    assert isinstance(end, Failed)
    assert end.code == "worker_died"
    for _ in range(RESTARTS):
        until(lambda: session.local.failure or session.local.attached, "given up or back again")
        if session.local.failure is None:
            assert isinstance(answer(session, "die"), Failed)
    given_up = until(lambda: session.local.failure, "it is given up")
    assert given_up.code == "worker_crashes"
    monkeypatch.setenv("STAND_IN", "")
    session.local.spec = _with_environ(session)
    assert isinstance(answer(session, "and now?"), Done)


def _with_environ(session: Session):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return replace(session.local.spec, environ=dict(os.environ))


def test_a_worker_that_cannot_start_ends_the_question_with_its_last_words(
    open_session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "--crash-at-start 'No such device.'")
    end = answer(open_session(), "hello")
    assert isinstance(end, Failed)
    assert end.code == "worker_start_failed"
    assert "No such device." in end.message


def test_a_worker_that_cannot_be_spawned_ends_the_question(
    open_session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "worker_command", lambda spec: ["/nonexistent/python"])
    assert isinstance(answer(open_session(), "hello"), Failed)


def test_a_model_that_is_not_available_ends_the_question_with_its_reason(
    open_session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "--unavailable 'No network.'")
    end = answer(open_session(), "hello")
    assert end == Failed("not_available", "No network.", "A planted hint.")


def test_a_worker_whose_work_thread_fails_ends_the_question(
    open_session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "--broken 'disk on fire'")
    end = answer(open_session(), "hello")
    assert isinstance(end, Failed)
    assert "disk on fire" in end.message


def test_a_failure_of_one_question_is_not_the_workers(open_session: Open) -> None:
    session = open_session()
    end = answer(session, "fail as planned")
    assert isinstance(end, Failed)
    assert (end.code, end.message) == ("planted", "as planned")
    assert isinstance(answer(session, "hello"), Done)


def test_an_interrupt_ends_a_question_that_waits(
    open_session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "--load-for-ever")
    session = open_session()
    asked = ask(session, "hello")
    asked.wait_for(Waiting)
    session.interrupt()
    end = asked.end()
    assert isinstance(end, Failed)
    assert end.code == "cancelled"


def test_an_interrupt_ends_an_answer_and_the_next_question_works(
    open_session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "--delay-ms 20")
    session = open_session()
    for _ in range(3):
        asked = ask(session, "forever")
        asked.wait_for(Token)
        session.interrupt()
        end = asked.end()
        assert isinstance(end, Done)
        assert (end.finish_reason, end.provenance.model) == ("cancelled", "starter")
        assert end.usage.output_tokens >= 1
    done = answer(session, "one two")
    assert isinstance(done, Done)
    assert done.usage.output_tokens == 2


def test_another_model_in_use_is_never_answered_from_silently(
    open_session: Open, start_echo: StartEcho, connect: Connect
) -> None:
    start_echo(model="0.5B")
    connect(program="repl")
    end = answer(open_session(), "hello")
    assert isinstance(end, Failed)
    assert end.code == "worker_in_use"


def test_another_model_that_took_the_place_of_ours_is_never_answered_from_silently(
    open_session: Open, start_echo: StartEcho, connect: Connect, sandbox: Sandbox
) -> None:
    """Ours was stopped in another terminal, and another one started there."""
    session = open_session()
    assert isinstance(answer(session, "mine"), Done)
    stop("inference", sandbox.endpoints)
    echo = start_echo(model="0.5B")
    other = connect(program="repl")
    until(lambda: other.latest and isinstance(other.latest.status.state, Ready), "ready")
    with contextlib.suppress(TimeoutError):
        until(lambda: echo.status().status.clients == 2, "the old connection is back", 1.5)
    end = answer(session, "whose?")
    assert isinstance(end, Failed), f"answered by {end.provenance.model}"
    assert end.code == "worker_in_use"


def test_join_uses_the_worker_of_the_others(
    open_session: Open, start_echo: StartEcho, connect: Connect
) -> None:
    start_echo(model="0.5B")
    connect(program="repl")
    session = open_session()
    answer(session, "hello")
    identity = session.local.in_use_by_others
    assert identity is not None
    session.local.join(identity)
    done = answer(session, "hello")
    assert isinstance(done, Done)
    assert done.provenance.model == "0.5B"


def test_a_joined_worker_that_dies_is_started_again(
    open_session: Open, start_echo: StartEcho, connect: Connect
) -> None:
    """It was started with another setting than ours (here: the licence)."""
    echo = start_echo("--licence", "permissive", model="auto")
    connect(program="repl")
    session = open_session()
    answer(session, "hello")
    assert session.local.in_use_by_others is not None
    session.local.join(session.local.in_use_by_others)
    assert isinstance(answer(session, "hello"), Done)
    joined = session.local.peer
    echo.kill()
    until(lambda: session.local.peer is not joined, "its death was noticed")
    assert isinstance(answer(session, "again"), Done)


def test_take_over_ends_the_worker_of_the_others(
    open_session: Open, start_echo: StartEcho, connect: Connect
) -> None:
    other = start_echo(model="0.5B")
    connect(program="repl")
    session = open_session()
    answer(session, "hello")
    session.local.take_over()
    done = answer(session, "hello")
    assert isinstance(done, Done)
    assert done.provenance.model == "starter"
    assert other.wait() == 0


def test_another_model_is_had_though_the_farewell_to_the_first_is_late(
    open_session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes another way than the next Hello: who comes first is not said."""
    session = open_session()
    assert isinstance(answer(session, "hello"), Done)
    send = Connection.send

    def without_farewell(connection: Connection, frame: bytes) -> None:
        if not isinstance(codec.decode(frame), Detach):
            send(connection, frame)

    monkeypatch.setattr(Connection, "send", without_farewell)
    session.use_model("0.5B")
    done = answer(session, "hello")
    assert isinstance(done, Done)
    assert done.provenance.model == "0.5B"


def test_unload_does_not_end_what_another_has_just_attached_to(
    open_session: Open,
    start_echo: StartEcho,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though it has not heard of the other yet."""
    echo = start_echo()
    session = open_session()
    answer(session, "hello")
    monkeypatch.setattr(Connection, "events", lambda connection, **_: iter(()))
    monkeypatch.setattr(client, "PING_S", 2 * LIMIT_S)  # a pong would tell it as well
    connect(program="repl")
    assert session.unload() == "Not unloaded: another terminal uses it."
    assert echo.alive()


def test_unload_and_load_at_once_are_an_end_and_a_beginning(
    open_session: Open,
    start_echo: StartEcho,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though the connection's thread has not seen yet that the worker is gone."""
    echo = start_echo()
    session = open_session()
    answer(session, "hello")
    late = threading.Event()
    changes = Connection.changes

    def seen_late(connection: Connection) -> Iterator[bool]:
        for up in changes(connection):
            if not up:
                late.wait(LIMIT_S)
            yield up

    monkeypatch.setattr(Connection, "changes", seen_late)
    try:
        assert "Unloaded the local model" in session.unload()
        assert echo.wait() == 0
        assert session.unload() == "No local model is loaded."
        session.load()
    finally:
        late.set()
    until(lambda: sandbox.holder(), "a worker is there again")


def test_a_worker_that_unload_had_to_kill_is_not_started_by_itself(
    open_session: Open, monkeypatch: pytest.MonkeyPatch, start_echo: StartEcho
) -> None:
    monkeypatch.setattr(lifecycle, "STOP_S", 1.0)
    monkeypatch.setattr(probe, "ANSWER_S", 0.1)
    echo = start_echo()
    session = open_session()
    answer(session, "hello")
    peer = session.local.peer
    assert peer is not None
    changes: queue.SimpleQueue[bool] = queue.SimpleQueue()
    session.watch(lambda: changes.put(peer.latest is None))
    echo.freeze()
    assert "Unloaded the local model" in session.unload()
    while not changes.get(timeout=LIMIT_S):
        pass  # until the loss was seen, and what it leads to has begun
    assert session.local.resting


def test_with_a_key_the_cloud_answers_while_the_model_loads_and_then_the_model(
    open_session: Open, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    enough = sandbox.root / "enough"
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-1")
    monkeypatch.setenv("STAND_IN_INFERENCE", f"--load-until {enough}")
    session = open_session()
    asked = ask(session, "first")
    routed = asked.wait_for(RouteDecision)
    assert isinstance(routed, RouteDecision)
    assert (routed.target, routed.reason) == ("cloud", "model_not_ready")
    done = asked.end()
    assert isinstance(done, Done)
    assert done.provenance.role == "cloud"
    enough.touch()
    until(lambda: isinstance(session.view().local, Ready), "the model is ready")
    done = answer(session, "second")
    assert isinstance(done, Done)
    assert done.provenance.role == "inference"


def test_a_private_question_never_starts_the_cloud(
    open_session: Open, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-1")
    session = open_session()
    done = answer(session, "secret", Override(Target.LOCAL, private=True))
    assert isinstance(done, Done)
    assert set(sandbox.holders()) == {"inference"}


def test_a_question_for_the_cloud_does_not_start_the_model(
    open_session: Open, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-1")
    done = answer(open_session(), "hello", Override(Target.CLOUD))
    assert isinstance(done, Done)
    assert set(sandbox.holders()) == {"cloud"}


def test_closing_gives_the_lease_back_and_leaves_the_worker(
    open_session: Open, start_echo: StartEcho
) -> None:
    echo = start_echo()
    session = open_session()
    answer(session, "hello")
    session.close()
    until(lambda: echo.status().status.clients == 0, "no lease is left")
    assert echo.alive()


def test_closing_while_attaching_leaves_no_lease(open_session: Open, start_echo: StartEcho) -> None:
    echo = start_echo()
    session = open_session()
    session.start()
    session.close()
    until(lambda: echo.status().status.clients == 0, "no lease is left")
