"""A first guess that nobody laughs at, and that decides nothing."""

from __future__ import annotations

import pytest

from shammah.bus.messages import ChatMessage, Ready
from shammah.router.decision import Override, Reason, RouteDecision, Target, View, decide
from shammah.router.explanation import explain
from shammah.router.measured import guess_quality, size_of
from shammah.router.question import examine, is_sum
from shammah.router.route import Arm, Category
from shammah.router.statistics import Snapshot
from shammah.settings.model import RouterSettings


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("starter", 0.135),
        ("Qwen/Qwen2.5-3B-Instruct", 3.0),
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.5),
        ("HuggingFaceTB/SmolLM2-360M", 0.36),
        ("acme/model_7b_chat", 7.0),
        ("/home/me/merged", None),
        ("acme/0B", None),
        ("", None),
    ],
)
def test_a_size_is_read_from_the_name(model: str, size: float | None) -> None:
    assert size_of(model) == size


@pytest.mark.parametrize(
    ("text", "sums"),
    [
        ("What is 17*23?", True),
        ("what's 12 plus 30", True),
        ("(3 + 4) * 2", True),
        ("What is the capital of France?", False),
        ("The flight at 10:30 on 2026-11-28", False),
        ("0.5 - 0.25", True),
    ],
)
def test_a_sum_is_seen(text: str, sums: bool) -> None:
    assert is_sum(text) is sums


def test_larger_is_better_and_small_models_neither_calculate_nor_program() -> None:
    def guess(model: str, category: Category = Category.OTHER, *, sums: bool = False) -> float:
        return guess_quality(Arm(category, Target.LOCAL, model), sums=sums)

    for kind in ({}, {"category": Category.CODE}, {"sums": True}, {"category": Category.GREETING}):
        shares = [guess(one, **kind) for one in ("starter", "0.5B", "1.5B", "3B", "7B")]  # type: ignore[arg-type]
        assert shares == sorted(shares)
    assert guess("starter", sums=True) < 0.05
    assert guess("starter", Category.CODE) < 0.05
    assert guess("2B") == pytest.approx((guess("1.5B") + guess("3B")) / 2, abs=0.02)
    assert guess("700B") == guess("14B")
    assert 0.5 < guess("/home/me/merged") < 0.7


def test_a_guess_is_shown_and_decides_nothing() -> None:
    question = examine((ChatMessage("user", "What is 17*23?"),))
    view = View(Ready("starter", context_length=4096), Ready("claude"), True, "claude")
    decided = decide(question, Override(), view, Snapshot(), RouterSettings())
    assert isinstance(decided, RouteDecision)
    assert (decided.target, decided.reason) == (Target.LOCAL, Reason.MODEL_READY)
    told = explain(decided)
    assert "local (starter): estimated 2% good answers (0% worst case; no data yet)" in told
    assert "trusted until its answers say otherwise" in told
