"""The router of one frontend: what it remembers, and what happens when it cannot."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shammah.bus.messages import ChatMessage, Done, Failed, Provenance, Ready, Timings, Usage
from shammah.router.decision import Override, Reason, RouteDecision, Target, View
from shammah.router.route import Question
from shammah.router.service import Routing
from shammah.router.statistics import Label
from shammah.router.store import Store
from shammah.settings.load import load_settings
from shammah.settings.model import RouterSettings
from tests.fakes.sandbox import LIMIT_S, Sandbox, until

VIEW = View(Ready("small", quantization="int8"), Ready("claude"), True, "claude")
Open = Callable[..., Routing]


@pytest.fixture
def complaints() -> list[str]:
    return []


@pytest.fixture
def open_routing(sandbox: Sandbox, complaints: list[str]) -> Iterator[Open]:
    opened: list[Routing] = []

    def make(policy: str = "measured", exploration: float = 0.0) -> Routing:
        settings = replace(load_settings(os.environ), router=RouterSettings(policy, exploration))
        opened.append(Routing(settings, {"LANG": "en_US.UTF-8"}, complaints.append))
        opened[-1].start()
        assert opened[-1].ready.wait(LIMIT_S)
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def ask(routing: Routing, text: str = "explain tides") -> tuple[Question, RouteDecision]:
    question = routing.examine((ChatMessage("user", text),))
    decision = routing.decide(question, Override(), VIEW)
    assert isinstance(decision, RouteDecision)
    return question, decision


def done(finish_reason: str = "stop") -> Done:
    timings = Timings(ttft_s=0.5, decode_tokens_per_second=20.0)
    usage = Usage(10, 20, cost=0.25)
    return Done("id", finish_reason, usage, timings, Provenance("inference", "small"))


def answer(routing: Routing, end: Done | Failed | None = None, text: str = "The moon.") -> str:
    """Its name in the statistics."""
    before = routing.snapshot
    _, decision = ask(routing)
    name = routing.record(decision, end or done(), question="explain tides", answer=text)
    until(lambda: routing.snapshot is not before, "it is learnt")
    return name


def label(routing: Routing, given: Label, name: str) -> None:
    before = routing.snapshot
    assert routing.label(given, name)
    until(lambda: routing.snapshot is not before, "it is learnt")


def test_an_answer_is_remembered_by_the_next_frontend(open_routing: Open) -> None:
    routing = open_routing()
    answer(routing)
    _, decision = ask(routing)
    arm = decision.alternatives[0].arm
    assert (arm.category, arm.model, arm.quantization) == ("explanation", "small", "int8")
    tally = open_routing().snapshot.tally(arm)
    assert (tally.answers, tally.successes, tally.ttft_s) == (1, 0.25, 0.5)
    assert (tally.tokens_per_second, tally.cost) == (20.0, 0.25)


def test_bad_answers_send_such_questions_to_the_cloud_and_others_not(open_routing: Open) -> None:
    routing = open_routing()
    for _ in range(3):
        assert ask(routing)[1].target is Target.LOCAL
        label(routing, Label.BAD, answer(routing))
    assert ask(routing)[1].reason is Reason.LOW_CONFIDENCE
    assert ask(routing, "hello")[1].target is Target.LOCAL


def test_the_policy_of_the_settings_decides(open_routing: Open) -> None:
    assert ask(open_routing("classic"))[1].reason is Reason.NO_MATCH
    assert ask(open_routing("measured"))[1].reason is Reason.MODEL_READY


@pytest.mark.parametrize(
    ("end", "text", "trials", "successes"),
    [
        (done(), "The moon.", 0.25, 0.25),
        (done(), "", 0.4, 0.0),
        (done("cancelled"), "The", 0.5, 0.0),
        (Failed("cancelled", "Cancelled."), "The", 0.5, 0.0),
        (Failed("worker_died", "It died."), "The", 0.4, 0.0),
    ],
)
def test_how_an_answer_ended_is_a_label(
    open_routing: Open, end: Done | Failed, text: str, trials: float, successes: float
) -> None:
    routing = open_routing()
    answer(routing, end, text)
    (tally,) = routing.snapshot.arms.values()
    assert (tally.trials, tally.successes) == (trials, successes)


def test_a_question_in_danger_is_not_written_down(open_routing: Open, sandbox: Sandbox) -> None:
    routing = open_routing()
    asked, decision = ask(routing, "I want to kill myself")
    assert "988" in routing.help_text(asked)
    assert decision.reason is Reason.CRISIS
    assert not routing.record(decision, done(), question="?", answer="Please talk to somebody.")
    routing.close()
    store = Store(sandbox.shammah_home / "router.db")
    assert store.read().answers == 0
    store.close()


def test_no_text_reaches_the_disk(open_routing: Open, sandbox: Sandbox) -> None:
    routing = open_routing()
    _, decision = ask(routing, "explain the xylophone")
    routing.record(decision, done(), question="explain the xylophone", answer="It is a zither.")
    routing.close()
    for file in sandbox.shammah_home.glob("router.db*"):
        assert b"xylophone" not in file.read_bytes()
        assert b"zither" not in file.read_bytes()


def test_help_is_for_nobody_else(open_routing: Open) -> None:
    routing = open_routing()
    assert routing.help_text(ask(routing)[0]) == ""


def test_a_failure_of_the_cloud_is_remembered_until_it_answers(open_routing: Open) -> None:
    routing = open_routing()
    asked = routing.examine((ChatMessage("user", "I want to kill myself"),))

    def target_after(end: Done | Failed) -> tuple[Target, Reason]:
        decided = routing.decide(asked, Override(Target.CLOUD), replace(VIEW, local=None))
        assert isinstance(decided, RouteDecision)
        routing.record(replace(decided, target=Target.CLOUD), end, question="?", answer="")
        decided = routing.decide(asked, Override(), VIEW)
        assert isinstance(decided, RouteDecision)
        return decided.target, decided.reason

    assert target_after(Failed("cloud_overloaded", "Busy."))[0] is Target.LOCAL
    assert target_after(done())[0] is Target.CLOUD
    assert target_after(Failed("cloud_bad_request", "Odd."))[0] is Target.CLOUD
    assert target_after(Failed("cloud_unreachable", "Gone."))[0] is Target.LOCAL
    assert target_after(Failed("cancelled", "Cancelled."))[0] is Target.CLOUD


@pytest.mark.parametrize("damage", ["a file", "a directory"])
def test_without_a_file_it_remembers_for_itself_and_says_so_once(
    open_routing: Open, sandbox: Sandbox, complaints: list[str], damage: str
) -> None:
    path: Path = sandbox.shammah_home / "router.db"
    if damage == "a file":
        path.write_bytes(b"not a database, " * 100)
    else:
        path.mkdir()
    routing = open_routing()
    (complaint,) = complaints
    assert str(path) in complaint
    for _ in range(3):
        label(routing, Label.BAD, answer(routing))
    assert complaints == [complaint]
    assert ask(routing)[1].reason is Reason.LOW_CONFIDENCE
    assert routing.snapshot.classic.total_queries == 3


def test_there_is_nothing_to_label_before_an_answer(open_routing: Open) -> None:
    assert not open_routing().label(Label.GOOD, "")


def test_leaving_writes_what_is_left(open_routing: Open, sandbox: Sandbox) -> None:
    routing = open_routing()
    _, decision = ask(routing)
    for _ in range(20):
        routing.record(decision, done(), question="explain tides", answer="The moon.")
    routing.close()
    store = Store(sandbox.shammah_home / "router.db")
    assert store.read().answers == 20
    store.close()
