"""Where questions land when everything is real: the table of docs/ROUTING.md, arranged.

Sessions, the bus and the cloud worker are real; the local model is an echo that is brought into
each state; llmock is the cloud that breaks, SmolLM2 behind xllamacpp the one that answers. A port
that can be taken down is between worker and llmock: the network.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from shammah.bus.messages import (
    ChatMessage,
    Done,
    Downloading,
    Failed,
    Loading,
    Ready,
    Retrying,
    Token,
)
from shammah.chat.conversation import Notice, Step, Waiting
from shammah.chat.session import FIXED_TEXT, Session
from shammah.privacy.ledger import read_ledger
from shammah.router import service
from shammah.router.decision import BUSY_AT, Override, RouteDecision, Target
from shammah.router.measured import PATIENCE_S
from shammah.router.route import Arm, Category, Reason
from shammah.router.statistics import Label, Outcome
from shammah.router.store import Store
from shammah.settings.load import load_settings
from shammah.supervision import lifecycle
from shammah.supervision.lifecycle import WorkerSpec, stop
from tests.fakes import frontend, impatient
from tests.fakes.sandbox import LIMIT_S, Sandbox, until
from tests.fakes.turns import way_of
from tests.real.relay import Relay, relay_to
from tests.real.servers import FaultyServer, llmock_server, messages_api_server
from tests.unit.router.test_decision import in_words, rows

pytestmark = pytest.mark.timeout(600)

QUESTION = "The capital of France, please"
CRISIS = "I want to kill myself"
MODEL = "0.5B"
CLOUD_MODEL = "claude-sonnet-5-5"
POLICIES = ("measured", "classic")


# --- what is known ----------------------------------------------------------------------------


def outcomes(
    count: int,
    label: Label,
    target: Target = Target.LOCAL,
    *,
    ttft_s: float = 0.0,
    reason: Reason = Reason.USER,
    quantization: str = "",
) -> list[Outcome]:
    model = MODEL if target is Target.LOCAL else CLOUD_MODEL
    arm = Arm(Category.OTHER, target, model, quantization)
    one = Outcome("", 0.0, arm, reason, "stop", label, label.is_good, ttft_s, 20.0)
    return [replace(one, turn=os.urandom(8).hex()) for _ in range(count)]


GOOD = outcomes(20, Label.GOOD)
BAD = outcomes(2, Label.GOOD) + outcomes(6, Label.BAD)
LATE = PATIENCE_S + 1

KNOWN: dict[str, list[Outcome]] = {
    "good": GOOD,
    "bad": BAD,
    "first token late": outcomes(1, Label.TEXT_GOOD, ttft_s=LATE),
    "first token late, good": outcomes(20, Label.GOOD, ttft_s=LATE),
    "cloud no better": BAD + outcomes(60, Label.BAD, Target.CLOUD),
    "budget spent": BAD + outcomes(3, Label.BAD, reason=Reason.EXPLORATION),
    "another quantisation now": outcomes(2, Label.GOOD, quantization="int8")
    + outcomes(6, Label.BAD, quantization="int8"),
}


# --- one row ----------------------------------------------------------------------------------

READY = "--delay-ms 1"  # an answer without end does not take the processor from the others
LOCAL_STATES = {
    "model loading": ("--load-for-ever", Loading),
    "model downloading": ("--download-for-ever", Downloading),
    "model failed": ("--broken planted", Failed),
    "model standing in": (f"{READY} --fetching {MODEL}", Ready),
    "model not heard yet": (READY, type(None)),
    "model silent": (READY, type(None)),
}
HELD = ("model not heard yet", "model silent")
"""The worker is there, and held back."""


@dataclass(frozen=True)
class Case:
    """A row of the table under one policy, and how it is brought about."""

    trigger: str
    policy: str
    expected: str
    parts: tuple[str, ...] = field(default=())

    @property
    def local(self) -> str:
        """The local state that it wants; empty: ready."""
        return next((part for part in self.parts if part in LOCAL_STATES), "")

    @property
    def keys(self) -> str:
        return next((part for part in self.parts if part in ("no key", "cloud broken")), "")

    @property
    def override(self) -> Override:
        requested = {"local wished": Target.LOCAL, "cloud wished": Target.CLOUD}
        target = next((requested[part] for part in self.parts if part in requested), None)
        return Override(target, private="private" in self.parts)

    @property
    def known(self) -> list[Outcome]:
        if self.trigger in KNOWN:
            return KNOWN[self.trigger]
        found = [KNOWN[part] for part in self.parts if part in KNOWN]
        return found[-1] if found else []


def cases() -> list[Case]:
    """Those that want the same workers stand together. Servers beside the local model are not
    here: tests/process/test_servers.py has them."""
    found = [
        Case(trigger, policy, expected, tuple(re.split(", | and ", trigger)))
        for trigger, *both in rows()
        for policy, expected in zip(POLICIES, both, strict=True)
        if "server" not in trigger
    ]
    return sorted(found, key=lambda case: (case.keys, case.local))


# --- the world --------------------------------------------------------------------------------


class World:
    """Brings a case about, asks, and tells where the question has landed."""

    def __init__(
        self, sandbox: Sandbox, patch: pytest.MonkeyPatch, faulty: FaultyServer, network: Relay
    ) -> None:
        self._sandbox = sandbox
        self._patch = patch
        self.faulty = faulty
        self._network = network
        self._workers: tuple[str, str] | None = None

    def land(self, case: Case) -> str:
        """The decision in words, after it was looked at that the question did go there."""
        self.arrange(case)
        with self._held(case), self.session(case) as session:
            if case.local == "model silent":
                session.local.note_silence()
            self._break_cloud(session, case)
            sent = self.sent()
            with self._queue(session, BUSY_AT if "many questions ahead" in case.parts else 0):
                decided, end = ask(session, case.override, self._question(case))
            role = end.provenance.role if isinstance(end, Done) else end.code
            if isinstance(end, Done) and end.provenance.model == FIXED_TEXT:
                assert self.sent() == sent, case
                return "a fixed text"
            if isinstance(decided, Failed):
                assert (role, self.sent()) == (decided.code, sent), case
            elif decided.wait:
                assert (role, self.sent()) == ("cancelled", sent), case
            elif decided.target is Target.LOCAL:
                assert (role, self.sent()) == ("inference", sent), case
            else:
                assert (role, self.sent()) == ("cloud", sent + 1), case
            return in_words(decided)

    def sent(self) -> int:
        """How many requests have gone out."""
        return len(read_ledger(self._sandbox.shammah_home)[0])

    def know(self, known: list[Outcome], policy: str = "measured", share: float = 0.05) -> None:
        router = f'[router]\npolicy = "{policy}"\nexploration = {share}\n'
        cloud = f'[cloud]\nmodel = "{CLOUD_MODEL}"\n'
        (self._sandbox.shammah_home / "config.toml").write_text(router + cloud)
        for file in self._sandbox.shammah_home.glob("router.db*"):
            file.unlink()
        store = Store(self._sandbox.shammah_home / "router.db")
        for one in known:
            store.add(one)
        store.close()

    @contextlib.contextmanager
    def session(self, case: Case) -> Iterator[Session]:
        """With everybody's state known, and the dice loaded."""
        session = Session(load_settings(os.environ, MODEL), os.environ, "ask")
        dice = SimpleNamespace(random=lambda: 0.0 if self._drawn(case) else 0.999)
        self._patch.setattr(service, "random", dice)
        try:
            session.start()
            state = LOCAL_STATES[case.local][1] if case.local else Ready
            until(lambda: isinstance(session.local.state, state), f"local for {case}")
            if (cloud := session.cloud) is not None:
                wanted = Failed if case.keys else Ready
                until(lambda: isinstance(cloud.state, wanted), f"cloud for {case}")
            until(session.routing.ready.is_set, "the statistics are read")
            yield session
        finally:
            session.close()

    @contextlib.contextmanager
    def _held(self, case: Case) -> Iterator[None]:
        if case.local not in HELD:
            yield
            return
        with self.session(Case("", case.policy, "", tuple({case.keys} - {""}))):
            pid = self._sandbox.holder()
            assert pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    @staticmethod
    def _drawn(case: Case) -> bool:
        return bool({"drawn", "drawn for exploration"} & set(case.parts))

    @staticmethod
    def _question(case: Case) -> str:
        if "crisis" in case.parts:
            return CRISIS
        if "conversation too long" in case.parts:
            return "word " * 8000
        return QUESTION

    def arrange(self, case: Case) -> None:
        self.faulty.reset()
        self.know(case.known, case.policy, 0.0 if "exploration 0" in case.parts else 0.05)
        if self._workers == (case.keys, case.local):
            return
        self._workers = (case.keys, case.local)
        for role in ("inference", "cloud") if case.keys else ("inference",):
            stop(role, self._sandbox.endpoints)
        key = {"no key": "", "cloud broken": "sk bad"}.get(case.keys, "sk-test")
        self._patch.setenv("ANTHROPIC_API_KEY", key)
        options = LOCAL_STATES[case.local][0] if case.local else READY
        self._patch.setenv("STAND_IN_INFERENCE", options)

    def _break_cloud(self, session: Session, case: Case) -> None:
        """For real: a question that fails, at a server or at the network."""
        if "cloud failed lately" in case.parts:
            self.faulty.script({"type": "fail", "status": 401})
            _, end = ask(session, Override(Target.CLOUD), "hello")
            assert isinstance(end, Failed)
            assert end.code == "cloud_key_rejected"
        if "network lost lately" in case.parts:
            self._network.go_down()
            _, end = ask(session, Override(Target.CLOUD), "hello")
            self._network.come_up()
            assert isinstance(end, Failed)
            assert end.code == "cloud_unreachable"

    @contextlib.contextmanager
    def _queue(self, session: Session, count: int) -> Iterator[None]:
        """So many questions of others are before ours."""
        peer = session.local.peer
        if not count:
            yield
            return
        assert peer is not None
        tasks = [peer.generate((ChatMessage("user", "forever"),)) for _ in range(count)]
        until(lambda: session.view().local_active >= count, "they are in hand")
        yield
        for task in tasks:
            task.cancel()
        for task in tasks:
            assert any(isinstance(reply, Done | Failed) for reply in task)


def ask(
    session: Session, override: Override, question: str
) -> tuple[RouteDecision | Failed, Done | Failed]:
    """The decision and the end; a question that waits is cancelled."""
    decided: list[RouteDecision | Failed] = []
    decide = session.routing.decide

    def listen(*arguments: Any) -> RouteDecision | Failed:
        decided.append(decide(*arguments))
        return decided[-1]

    session.routing.decide = listen  # type: ignore[method-assign]
    try:
        steps = follow(session, override, question)
    finally:
        session.routing.decide = decide  # type: ignore[method-assign]
    assert isinstance(steps[-1], Done | Failed)
    return decided[-1], steps[-1]


def follow(session: Session, override: Override, question: str) -> list[Step]:
    steps: list[Step] = []
    for step in way_of(session, (ChatMessage("user", question),), override):
        if isinstance(step, Waiting):
            session.interrupt()
        steps.append(step)
    return steps


@pytest.fixture(scope="module")
def llmock() -> Iterator[FaultyServer]:
    with llmock_server() as server:
        yield server


@pytest.fixture
def spawns(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    cloud = impatient.command_of(lifecycle.worker_command)

    def command(spec: WorkerSpec) -> list[str]:
        return cloud(spec) if spec.role == "cloud" else frontend.echo_command(spec)

    monkeypatch.setattr(lifecycle, "worker_command", command)
    yield
    for thread in [t for t in threading.enumerate() if t.name.startswith("attach-")]:
        thread.join(LIMIT_S)
    for child in lifecycle.children:
        child.kill()
        child.wait()


@pytest.fixture
def world(
    sandbox: Sandbox, spawns: None, llmock: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    llmock.reset()
    port = urlsplit(llmock.origin).port
    assert port is not None
    with relay_to(port) as network:
        address = f"http://127.0.0.1:{network.port}/anthropic"
        monkeypatch.setenv("ANTHROPIC_BASE_URL", address)
        yield World(sandbox, monkeypatch, llmock, network)


# --- the tests --------------------------------------------------------------------------------


def test_every_row_lands_where_the_table_says(world: World) -> None:
    table = cases()
    assert len(table) == 2 * sum("server" not in row[0] for row in rows())
    landed = {(case.trigger, case.policy): world.land(case) for case in table}
    assert landed == {(case.trigger, case.policy): case.expected for case in table}


REPLY = {"type": "reply", "text": "one two three four five six"}


def fault(kind: str, **more: object) -> tuple[dict[str, Any], ...]:
    return REPLY, {"type": "stream_fault", "kind": kind, "after_chunks": 5, **more}


Script = tuple[dict[str, Any], ...]

FAULTS: list[tuple[str, Script, str, str]] = [
    # what the server does; how it ends; where the next question goes that Claude would be asked
    ("400", ({"type": "fail", "status": 400},), "cloud_bad_request", "low_confidence"),
    ("401", ({"type": "fail", "status": 401},), "cloud_key_rejected", "cloud_failed"),
    ("402", ({"type": "fail", "status": 402},), "cloud_billing", "cloud_failed"),
    ("403", ({"type": "fail", "status": 403},), "cloud_key_rejected", "cloud_failed"),
    ("404", ({"type": "fail", "status": 404},), "cloud_model_unknown", "cloud_failed"),
    ("413", ({"type": "fail", "status": 413},), "cloud_too_large", "low_confidence"),
    (
        "429, too long to wait",
        ({"type": "fail", "status": 429, "retry_after": 300},),
        "cloud_rate_limited",
        "cloud_failed",
    ),
    # In mid-answer: Claude is asked for the rest, once more and well.
    ("disconnect", fault("disconnect"), "stop", "low_confidence"),
    ("truncate", fault("truncate"), "stop", "low_confidence"),
    ("malformed", fault("malformed"), "stop", "low_confidence"),
    ("stall", fault("stall", stall_seconds=60), "stop", "low_confidence"),
    ("408", ({"type": "fail", "status": 408},), "stop", "low_confidence"),
    ("409", ({"type": "fail", "status": 409},), "stop", "low_confidence"),
    ("429", ({"type": "fail", "status": 429, "retry_after": 0},), "stop", "low_confidence"),
    ("500", ({"type": "fail", "status": 500, "retry_after": 0},), "stop", "low_confidence"),
    ("503", ({"type": "fail", "status": 503, "retry_after": 0},), "stop", "low_confidence"),
    ("529", ({"type": "fail", "status": 529, "retry_after": 0},), "stop", "low_confidence"),
    ("slow", ({"type": "slow_first_token", "seconds": 60},), "stop", "low_confidence"),
    ("delay", ({"type": "delay", "seconds": 60},), "stop", "low_confidence"),
]


def test_after_every_fault_the_next_question_lands_where_it_should(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The local model is ready and known to be bad, so that Claude would be asked."""
    monkeypatch.setenv("READ_TIMEOUT_S", "6")  # what the server may take on a slow machine
    case = Case("bad", "measured", "", ("bad",))
    world.arrange(case)
    ended = {}
    for name, script, _, _ in FAULTS:
        world.know(BAD)
        with world.session(case) as session:
            world.faulty.reset()
            world.faulty.script(*script)
            steps = follow(session, Override(Target.CLOUD), QUESTION)
            told = [step for step in steps if isinstance(step, Retrying | Notice)]
            end = steps[-1]
            assert isinstance(end, Done | Failed)
            assert bool(told) is isinstance(end, Done), name
            how = end.finish_reason if isinstance(end, Done) else end.code
            decided, _ = ask(session, Override(), QUESTION)
            assert isinstance(decided, RouteDecision)
            ended[name] = (how, decided.reason.value)
    assert ended == {name: (how, reason) for name, _, how, reason in FAULTS}


def test_the_rows_that_end_at_the_cloud_end_with_its_answer(
    sandbox: Sandbox, spawns: None, llmock: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a real model behind a real Messages API; what is private stays here meanwhile."""
    with messages_api_server() as address, relay_to(1) as nowhere:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", address)
        world = World(sandbox, monkeypatch, llmock, nowhere)
        wanted = ("cloud wished", "bad", "many questions ahead", "private", "private, cloud wished")
        chosen = [case for case in cases() if case.trigger in wanted]
        for case in chosen:
            assert world.land(case) == case.expected
        case = next(case for case in chosen if case.trigger == "cloud wished")
        with world.session(case) as session:
            question = "What is the capital of France?"
            steps = follow(session, Override(Target.CLOUD), question)
        text = "".join(step.text for step in steps if isinstance(step, Token))
        assert "Paris" in text
        (routed,) = [step for step in steps if isinstance(step, RouteDecision)]
        assert routed.reason is Reason.USER
