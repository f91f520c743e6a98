"""The decision: the table of docs/ROUTING.md, row by row, and what must hold in every case."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.bus.messages import (
    Downloading,
    Failed,
    Initializing,
    Loading,
    NotAvailable,
    Ready,
    State,
)
from shammah.router.classic import CategoryCount, ClassicState
from shammah.router.crisis import Danger
from shammah.router.decision import (
    BUSY_AT,
    NO_KEY,
    UNFIT,
    Override,
    Reason,
    RouteDecision,
    Target,
    View,
    decide,
)
from shammah.router.explanation import REASONS, explain
from shammah.router.measured import PATIENCE_S
from shammah.router.route import Arm, Beside, Category, Question
from shammah.router.statistics import Snapshot, Tally
from shammah.settings.model import RouterSettings

DOCUMENT = Path(__file__).parents[3] / "docs" / "ROUTING.md"
POLICIES = ("measured", "classic")

READY, CLAUDE = Ready("small", context_length=4096), Ready("claude")
STANDING_IN = Ready("starter", context_length=4096, fallback=True, successor=Downloading("m"))
COMING = (None, Initializing(), Downloading("m"), Loading("m", "weights"))
LOST_LOCAL = (Failed("internal", "Broken.", "Look."), NotAvailable("No model.", "Fetch it."))
LOST_CLOUD = (Failed("cloud", "No cloud.", ""), NotAvailable("No key.", ""))
OVERLOADED = Failed("cloud_overloaded", "Overloaded.")
UNREACHABLE = Failed("cloud_unreachable", "No network.")

LOCAL_STATES: tuple[State | None, ...] = (*COMING, STANDING_IN, READY, *LOST_LOCAL)
CLOUD_STATES: tuple[State | None, ...] = (*COMING, CLAUDE, *LOST_CLOUD)

BOX, BIG = Beside("box", "some", 4096), Beside("box", "some-70b")

BESIDES = (
    (),
    (BOX, replace(BIG, name="shed", private=True)),
    (replace(BIG, private=True, why="Gone."),),
    (replace(BIG, failed=True, private=True),),
)

HERE = Arm(Category.OTHER, Target.LOCAL, "small")
THERE = Arm(Category.OTHER, Target.CLOUD, "claude")
NEVER_DRAWN, DRAWN = 0.999, 0.0


EVERYBODY = View(READY, CLAUDE, True, "claude")


@dataclass(frozen=True)
class Case:
    """A situation of the table; as it is here, nothing is known and everybody can answer."""

    question: Question = field(default_factory=Question)
    override: Override = field(default_factory=Override)
    view: View = EVERYBODY
    snapshot: Snapshot = field(default_factory=Snapshot)
    exploration: float = 0.05
    chance: float = NEVER_DRAWN

    def decide(self, policy: str) -> RouteDecision | Failed:
        rules = RouterSettings(policy, self.exploration)
        question = replace(self.question, chance=self.chance)
        return decide(question, self.override, self.view, self.snapshot, rules)


def classic(successes: int, failures: int) -> ClassicState:
    count = CategoryCount(successes + failures, successes, failures)
    return ClassicState(40, count.local_attempts, successes, categories={Category.OTHER: count})


def known(tally: Tally, state: ClassicState, cloud: Tally | None = None, **more: Any) -> Snapshot:
    return Snapshot({HERE: tally, THERE: cloud or Tally()}, 40, classic=state, **more)


GOOD = known(Tally(20, 20.0, 20.0), classic(20, 0))
BAD = known(Tally(8, 8.0, 2.0), classic(2, 6))
SLOW = Tally(ttft_s=PATIENCE_S + 1)

TRIGGERS: dict[str, dict[str, Any]] = {
    "private": {"override": Override(private=True)},
    "crisis": {"question": Question(danger=Danger.SELF_HARM)},
    "local wished": {"override": Override(Target.LOCAL)},
    "cloud wished": {"override": Override(Target.CLOUD)},
    "no key": {"cloud": None, "cloud_configured": False, "cloud_model": ""},
    "model not heard yet": {"local": None},
    "model silent": {"local": None, "local_silent": True},
    "model loading": {"local": COMING[3]},
    "model standing in": {"local": STANDING_IN},
    "model downloading": {"local": COMING[2]},
    "model failed": {"local": LOST_LOCAL[0]},
    "cloud broken": {"cloud": LOST_CLOUD[0]},
    "cloud failed lately": {"cloud_failure": OVERLOADED},
    "network lost lately": {"cloud_failure": UNREACHABLE},
    "conversation too long": {"question": Question(tokens=2 * 4096 + 1)},
    "many questions ahead": {"local_active": BUSY_AT},
    "first token late": {"snapshot": Snapshot({HERE: SLOW})},
    "unknown": {},
    "good": {"snapshot": GOOD},
    "bad": {"snapshot": BAD},
    "cloud no better": {"snapshot": known(BAD.arms[HERE], BAD.classic, Tally(60, 60.0, 0.0))},
    "drawn for exploration": {"chance": DRAWN},
    "drawn": {"chance": DRAWN},
    "budget spent": {"snapshot": replace(BAD, explored=3)},
    "exploration 0": {"exploration": 0.0},
    "server": {"servers": (BOX,)},
    "better server": {"servers": (BIG,)},
    "private server": {"servers": (replace(BOX, private=True),)},
    "server not heard yet": {"servers": (replace(BIG, why="?"),), "servers_unknown": True},
    "server lost": {"servers": (replace(BIG, why="Gone."),)},
    "server failed lately": {"servers": (replace(BIG, failed=True),)},
    "server wished": {"override": Override(Target.SERVER, server="box"), "servers": (BOX,)},
    "another quantisation now": {"local": replace(READY, quantization="int8")},
}
TRIGGERS["first token late, good"] = {
    "snapshot": known(replace(GOOD.arms[HERE], ttft_s=PATIENCE_S + 1), GOOD.classic)
}


def case_of(trigger: str) -> Case:
    parts = [trigger] if trigger in TRIGGERS else re.split(", | and ", trigger)
    changes: dict[str, Any] = {}
    for part in parts:
        changes |= TRIGGERS[part]
    if "private" in parts and "cloud wished" in parts:
        changes["override"] = Override(Target.CLOUD, private=True)
    seen = {name for name in changes if name in View.__dataclass_fields__}
    view = replace(EVERYBODY, **{name: changes.pop(name) for name in seen})
    return replace(Case(), view=view, **changes)


def rows() -> list[tuple[str, str, str]]:
    table = DOCUMENT.read_text("utf-8").split("## The table")[1].split("## Reasons")[0]
    found = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return [(row[0], row[1], row[2]) for row in found[1:]]


def in_words(decided: RouteDecision | Failed) -> str:
    if decided == UNFIT:
        return "a fixed text"
    if isinstance(decided, Failed):
        return "error"
    waits = ", waits" if decided.wait else ""
    return f"{decided.target}{waits} `{decided.reason}`"


@pytest.mark.parametrize(("trigger", "measured", "original"), rows())
def test_the_table_of_the_document(trigger: str, measured: str, original: str) -> None:
    case = case_of(trigger)
    assert in_words(case.decide("measured")) == measured
    assert in_words(case.decide("classic")) == original


def test_every_reason_is_in_the_table_and_explained() -> None:
    text = DOCUMENT.read_text("utf-8")
    table = " ".join(measured + original for _, measured, original in rows())
    explained = text.split("## Reasons")[1].split("## The policies")[0]
    for reason in Reason:
        # That one is only of what goes on after a failure.
        assert reason is Reason.SERVER_FAILED or f"`{reason}`" in table
        assert f"| `{reason}` |" in explained


@pytest.mark.parametrize("policy", POLICIES)
def test_every_trigger_is_explained_in_words(policy: str) -> None:
    for trigger, _, _ in rows():
        decided = case_of(trigger).decide(policy)
        if isinstance(decided, RouteDecision):
            words = explain(decided)
            assert words.count("\n") == 1 + 2 * len(decided.alternatives)
            assert REASONS[decided.reason] in words


# --- in every case ------------------------------------------------------------------------

STATES = st.sampled_from(LOCAL_STATES)
TALLIES = st.builds(
    lambda trials, share, ttft: Tally(int(trials), trials, trials * share, ttft),
    st.floats(0, 1000),
    st.floats(0, 1),
    st.floats(0, 100),
)
CASES = st.builds(
    Case,
    st.builds(
        Question,
        st.sampled_from(Category),
        st.none() | st.sampled_from(Danger),
        st.integers(0, 10_000),
    ),
    st.builds(Override, st.none() | st.sampled_from(Target), st.booleans()),
    st.builds(
        View,
        STATES,
        st.sampled_from(CLOUD_STATES),
        st.booleans(),
        st.just("claude"),
        st.none() | st.sampled_from((OVERLOADED, UNREACHABLE)),
        st.integers(0, 20),
        local_silent=st.booleans(),
        servers=st.sampled_from(BESIDES),
        servers_unknown=st.booleans(),
    ),
    st.builds(
        lambda here, there, answers, explored: Snapshot(
            {replace(arm, category=one): tally
             for one in Category for arm, tally in ((HERE, here), (THERE, there))},
            answers,
            explored,
            classic(3, 1),
        ),
        TALLIES,
        TALLIES,
        st.integers(0, 5000),
        st.integers(0, 100),
    ),
    st.floats(0, 1),
    st.floats(0, 1, exclude_max=True),
)  # fmt: skip


@given(CASES, st.sampled_from(POLICIES))
def test_what_is_private_never_goes_to_the_cloud(case: Case, policy: str) -> None:
    for target in (None, *Target):
        decided = replace(case, override=Override(target, private=True)).decide(policy)
        if isinstance(decided, RouteDecision):
            assert (decided.target is Target.CLOUD, decided.reason) == (False, Reason.PRIVATE)
            if decided.target is Target.SERVER and not decided.wait:
                server = case.view.server(decided.server)
                assert server is not None
                assert server.private
                assert not server.why
        elif decided == UNFIT:
            assert case.question.danger
        else:
            assert decided == failure_of(case.view.local)


@given(CASES, st.sampled_from(POLICIES))
def test_every_decision_is_sound(case: Case, policy: str) -> None:
    decided = case.decide(policy)
    view, override = case.view, case.override
    cloud_usable = view.cloud_configured and failure_of(view.cloud) is None
    local_lost = failure_of(view.local) is not None
    match decided:
        case RouteDecision(Target.CLOUD, _, wait):
            assert cloud_usable
            assert not wait
            assert not override.private
            assert override.target is not Target.LOCAL or case.question.danger
            known = view.local is not None or view.local_silent
            assert known or override.target is Target.CLOUD or case.question.danger
        case RouteDecision(Target.SERVER, _, wait):
            assert not case.question.danger
            assert override.target in (None, Target.SERVER) or override.private
            server = view.server(decided.server)
            assert wait or (server is not None and server.able)
        case RouteDecision(Target.LOCAL, _, wait):
            assert not local_lost
            assert wait is not isinstance(view.local, Ready)
            assert override.private or override.target is not Target.CLOUD or case.question.danger
        case Failed() if decided == UNFIT:
            assert case.question.danger
        case Failed():
            wished = override.target in (Target.LOCAL, Target.SERVER)
            assert not cloud_usable or override.private or wished
            assert local_lost or override.target in (Target.CLOUD, Target.SERVER)
    assert case.decide(policy) == decided


@given(CASES)
def test_nobody_in_danger_gets_a_weak_answer_while_there_is_a_better_one(case: Case) -> None:
    case = replace(case, question=Question(danger=Danger.ABUSE), override=Override())
    view = replace(case.view, cloud_configured=True, cloud=CLAUDE, cloud_failure=None)
    decided = replace(case, view=view).decide("measured")
    assert isinstance(decided, RouteDecision)
    assert (decided.target, decided.reason) == (Target.CLOUD, Reason.CRISIS)


@given(CASES, st.sampled_from(POLICIES))
def test_nobody_in_danger_is_answered_by_the_fallback_model_or_an_adapter(
    case: Case, policy: str
) -> None:
    view = replace(case.view, adapter="bakery")
    decided = replace(case, question=Question(danger=Danger.ABUSE), view=view).decide(policy)
    if isinstance(decided, RouteDecision) and decided.target is Target.LOCAL:
        assert decided.adapter == ""
        local = view.local
        assert not isinstance(local, Downloading)
        assert not isinstance(local, Ready) or not (local.fallback or local.model == "starter")
        assert not isinstance(local, Loading) or local.model != "starter"


def failure_of(state: State | None) -> Failed | None:
    """What is said of a worker that cannot answer, written once more to compare with."""
    if isinstance(state, NotAvailable):
        return Failed("not_available", state.reason, state.hint)
    return state if isinstance(state, Failed) else None


# --- without statistics, as it was before there were any -----------------------------------

WAIT = True


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (View(READY, None, False), (Target.LOCAL, Reason.MODEL_READY)),
        (View(READY, CLAUDE, True), (Target.LOCAL, Reason.MODEL_READY)),
        (View(READY, LOST_CLOUD[0], True), (Target.LOCAL, Reason.MODEL_READY)),
        (View(None, None, False), (Target.LOCAL, Reason.NO_CLOUD, WAIT)),
        (View(None, None, True), (Target.LOCAL, Reason.MODEL_UNKNOWN, WAIT)),
        (View(None, None, True, local_silent=True), (Target.CLOUD, Reason.MODEL_SILENT)),
        (View(COMING[3], CLAUDE, True), (Target.CLOUD, Reason.MODEL_NOT_READY)),
        (View(COMING[3], LOST_CLOUD[0], True), (Target.LOCAL, Reason.CLOUD_FAILED, WAIT)),
        (View(COMING[3], LOST_CLOUD[1], True), (Target.LOCAL, Reason.NO_CLOUD, WAIT)),
        (View(LOST_LOCAL[0], CLAUDE, True), (Target.CLOUD, Reason.MODEL_NOT_READY)),
        (View(LOST_LOCAL[0], None, False), LOST_LOCAL[0]),
        (View(LOST_LOCAL[1], None, False), Failed("not_available", "No model.", "Fetch it.")),
        (View(LOST_LOCAL[0], LOST_CLOUD[0], True), LOST_CLOUD[0]),
        (View(LOST_LOCAL[0], LOST_CLOUD[1], True), Failed("not_available", "No key.", "")),
    ],
)  # fmt: skip
def test_without_a_wish_and_without_statistics(
    view: View, expected: tuple[Any, ...] | Failed
) -> None:
    decided = replace(Case(), view=view).decide("measured")
    if isinstance(decided, RouteDecision):
        assert isinstance(expected, tuple)
        assert (decided.target, decided.reason, decided.wait) == (*expected, False)[:3]
    else:
        assert decided == expected


def test_a_wish_for_the_cloud_says_why_it_cannot_be_had() -> None:
    requested = replace(Case(), override=Override(Target.CLOUD))
    assert replace(requested, view=View(READY, None, False)).decide("measured") is NO_KEY
    broken = replace(requested, view=View(READY, LOST_CLOUD[0], True))
    assert broken.decide("measured") == LOST_CLOUD[0]


def test_the_alternatives_tell_what_was_known() -> None:
    tally = Tally(12, 10.0, 9.0, 1.5, 20.0)
    snapshot = Snapshot({HERE: tally, THERE: Tally(3, 3.0, 3.0, 0.8, 60.0, 0.004)}, 15)
    view = replace(EVERYBODY, local_active=1)
    decided = replace(Case(), snapshot=snapshot, view=view).decide("measured")
    assert isinstance(decided, RouteDecision)
    local, cloud = decided.alternatives
    assert (local.arm, local.quality, local.evidence) == (HERE, 0.75, 10.0)
    assert local.bound < local.quality
    assert local.ttft_s == 3.0  # one question is before it
    assert (cloud.arm, cloud.cost, cloud.obstacle) == (THERE, 0.004, None)
    assert "$0.0040 per answer" in explain(decided)
    assert decided.chosen == local


def test_servers_are_arms_with_numbers_of_their_own() -> None:
    bad = {Arm(Category.OTHER, Target.SERVER, "box/some-70b"): Tally(9, 9.0, 0.0)}
    other = Beside("other", "some-30b")
    view = replace(EVERYBODY, servers=(BIG, other))
    decided = replace(Case(), view=view, snapshot=Snapshot(bad, 9)).decide("measured")
    assert isinstance(decided, RouteDecision)
    assert (decided.answerer, decided.reason) == ("server:other", Reason.SERVER_BETTER)
    assert [one.arm.server for one in decided.alternatives] == ["", "box", "other", ""]
    assert decided.chosen is not None
    assert "Answered by other: better answers expected" in explain(decided)
    assert "server (box/some-70b): estimated" in explain(decided)


def test_a_cloud_of_another_name_is_named() -> None:
    view = replace(EVERYBODY, local=LOST_LOCAL[0], cloud_name="far")
    decided = replace(Case(), view=view).decide("measured")
    assert isinstance(decided, RouteDecision)
    assert explain(decided).startswith("Answered by far: local model not ready.")


def test_the_values_of_target_and_reason_are_what_json_shows() -> None:
    assert [target.value for target in Target] == ["local", "server", "cloud"]
    assert {reason.value for reason in Reason} == {
        "private", "crisis", "user", "model_ready", "model_not_ready", "model_unknown",
        "model_silent", "context_too_long", "busy",
        "low_confidence", "no_match", "exploration", "no_cloud", "offline", "cloud_failed",
        "server_better", "server_failed",
    }  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
def test_no_view_and_wish_is_without_an_end(policy: str) -> None:
    for local, cloud in itertools.product(LOCAL_STATES, CLOUD_STATES):
        for target, private in itertools.product((None, *Target), (False, True)):
            case = replace(
                Case(), view=View(local, cloud, True), override=Override(target, private)
            )
            assert isinstance(case.decide(policy), RouteDecision | Failed)
