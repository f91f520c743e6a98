"""The line below the prompt, at any width."""

from __future__ import annotations

import pytest

from shammah.bus.messages import Downloading, Failed, Loading, Ready, Usage
from shammah.privacy.gate import Gate
from shammah.repl.commands.routing import read_override
from shammah.repl.toolbar import Part, Spending, describe_bottom, fit
from shammah.router.decision import Override, Reason, RouteDecision, Target
from shammah.settings.model import Settings
from tests.fakes.sandbox import Sandbox

LOCAL = RouteDecision(Target.LOCAL, Reason.MODEL_READY)
CLOUD = RouteDecision(Target.CLOUD, Reason.MODEL_NOT_READY)
FETCHING = Downloading("Qwen/Qwen2.5-3B-Instruct", 410_000_000, 1_000_000_000, 24e6, 72.0)


def line(
    state: object, decision: RouteDecision | Failed, columns: int, spending: Spending | None = None
) -> str:
    parts = describe_bottom(state, decision, "claude", spending or Spending())  # type: ignore[arg-type]
    return fit(parts, columns)


def test_when_all_is_well_it_says_who_answers_and_what_was_spent() -> None:
    spending = Spending()
    assert line(Ready("starter"), LOCAL, 200, spending) == (
        "next: local, starter (local model ready)"
    )
    spending.add(Usage(1000, 234, cost=0.0021))
    assert line(Ready("starter"), LOCAL, 200, spending).endswith("   1,234 tokens · $0.0021")


def test_what_is_coming_comes_first() -> None:
    assert line(FETCHING, CLOUD, 200) == (
        "local model: Downloading Qwen/Qwen2.5-3B-Instruct: 41%, 0.4 of 1.0 GB, 24.0 MB/s, "
        "1 min 12 s left   next: claude (local model not ready)"
    )


def test_a_stand_in_says_so_and_that_the_download_failed() -> None:
    alone = RouteDecision(Target.LOCAL, Reason.NO_CLOUD)
    ready = Ready("starter", fallback=True, missing="Qwen/Qwen2.5-3B-Instruct")
    assert line(ready, alone, 200) == (
        "local model: Qwen2.5-3B-Instruct download failed   "
        "next: local, starter (fallback) (no cloud configured)"
    )
    assert line(ready, alone, 40) == "download failed   next: local"


def test_on_a_narrow_terminal_it_says_the_same_in_short() -> None:
    spending = Spending(1234, 0.5)
    assert line(FETCHING, CLOUD, 40, spending) == "fetching 41%   next: cloud   $0.50"
    assert line(FETCHING, CLOUD, 28, spending) == "fetching 41%   next: cloud"
    assert line(Loading("m", "weights", 1, 4), LOCAL, 30) == "loading 2/4   next: local"


def test_nobody_can_answer() -> None:
    failed = Failed("x", "The disk is full.")
    assert "next: nobody (The disk is full)" in line(failed, failed, 200)
    assert line(failed, failed, 30) == "failed   next: nobody"


@pytest.mark.parametrize("columns", range(1, 121))
def test_it_always_fits(columns: int) -> None:
    parts = (Part("a" * 60, "a" * 20), Part("b" * 50, "b"), Part("c" * 10, "c"))
    assert len(fit(parts, columns)) <= columns


def test_a_model_that_was_unloaded_is_not_coming() -> None:
    parts = describe_bottom(None, LOCAL, "claude", Spending(), resting=True)
    assert fit(parts, 60).startswith("local model: not loaded   next: local")


@pytest.mark.parametrize(
    ("typed", "override"),
    [
        ("What is 2+2?", Override()),
        ("!private What is 2+2?", Override(private=True)),
        ("write to bob@acme-corp.de", Override(private=True)),
        ("/local What is 2+2?", Override(Target.LOCAL)),
        ("/cloud What is 2+2?", Override(Target.CLOUD)),
        ("/cloud !private What is 2+2?", Override(Target.CLOUD, private=True)),
        ("/why", Override()),
    ],
)
def test_the_line_that_is_being_typed_counts(
    sandbox: Sandbox, typed: str, override: Override
) -> None:
    gate = Gate(Settings(sandbox.home, "starter"), {})
    assert read_override(typed, Override(), gate) == override
    gate.private = True
    assert read_override(typed, Override(), gate).private
