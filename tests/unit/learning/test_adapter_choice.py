"""Which adapter a question is answered with, and what is said and counted of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shammah.bus.messages import Done, Initializing, Provenance, Ready, State, Timings, Usage
from shammah.chat.summary import describe_answer
from shammah.learning.adapter_choice import choose_adapter
from shammah.learning.adapters import AdapterStore
from shammah.router.decision import Override, Reason, RouteDecision, Target, View, decide
from shammah.router.explanation import explain
from shammah.router.route import AUTO, OFF, Question
from shammah.router.statistics import Snapshot
from shammah.settings.model import RouterSettings
from tests.real.adapters import write_adapter

HERE = Ready("starter", "r1")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where `tidy` serves the starter."""
    tensors = {"base_model.model.x.lora_A.weight": np.ones((1, 1), np.float32)}
    write_adapter(tmp_path, "tidy", {}, tensors, base_revision="r1")
    AdapterStore(tmp_path).use("tidy")
    return tmp_path


@pytest.mark.parametrize(
    ("requested", "state", "chosen"),
    [
        (AUTO, HERE, "tidy"),
        (AUTO, Ready("starter", "r2"), ""),
        (AUTO, Ready("larger"), ""),
        (AUTO, Initializing(), ""),
        (AUTO, None, ""),
        (OFF, HERE, ""),
        ("terse", HERE, "terse"),
        ("terse", Ready("larger"), "terse"),
        ("terse", None, ""),
    ],
)
def test_the_wish_decides_then_what_serves(
    requested: str, state: State | None, chosen: str, home: Path
) -> None:
    assert choose_adapter(home, requested, state) == chosen


def test_without_adapters_none_is_chosen_and_nothing_is_made(tmp_path: Path) -> None:
    assert choose_adapter(tmp_path / "home", AUTO, HERE) == ""
    assert not (tmp_path / "home").exists()


def _decided(adapter: str, target: Target = Target.LOCAL) -> RouteDecision:
    view = View(HERE, Ready("claude"), True, "claude", adapter=adapter)
    decision = decide(Question(), Override(target), view, Snapshot(), RouterSettings())
    assert isinstance(decision, RouteDecision)
    return decision


def test_an_adapter_is_an_arm_of_its_own_and_never_goes_to_the_cloud() -> None:
    local = _decided("tidy")
    assert local.reason is Reason.USER
    assert local.adapter == "tidy"
    assert [one.arm.adapter for one in local.alternatives] == ["tidy", ""]
    assert _decided("tidy", Target.CLOUD).adapter == ""
    assert RouteDecision(Target.LOCAL, Reason.USER).adapter == ""


def test_people_are_told_of_it() -> None:
    decision = _decided("tidy")
    done = Done(
        "id", "stop", Usage(), Timings(), Provenance("inference", "starter", adapter="tidy")
    )
    assert describe_answer(done, decision).startswith("local: starter with tidy")
    assert "local (starter with tidy)" in explain(decision)
    plain = Done("id", "stop", Usage(), Timings(), Provenance("inference", "starter"))
    assert describe_answer(plain, _decided("")).startswith("local: starter ")
