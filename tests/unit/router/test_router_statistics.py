"""What is learnt from answers, and what the measured policy makes of it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.router.classic import ClassicState
from shammah.router.measured import GOOD_ENOUGH, curiosity, forecast, objection
from shammah.router.route import Arm, Category, Reason, Target
from shammah.router.statistics import (
    TIMINGS,
    Label,
    Outcome,
    Snapshot,
    Tally,
    judge,
    learn_classic,
    passes,
    score,
    summarize,
    wilson,
)

HERE = Arm(Category.CODE, Target.LOCAL, "small", "int8")
THERE = Arm(Category.CODE, Target.CLOUD, "claude")


def outcome(
    label: Label = Label.TEXT_GOOD, arm: Arm = HERE, passed: bool | None = True, **more: float
) -> Outcome:
    made = Outcome("t", 0.0, arm, Reason.MODEL_READY, "stop", label, passed)
    return replace(made, **more)  # type: ignore[arg-type]


def learnt(*labels: Label, arm: Arm = HERE) -> Snapshot:
    return summarize([outcome(label, arm) for label in labels], ClassicState())


# --- labels and sums ------------------------------------------------------------------------


def test_what_people_do_outweighs_what_a_text_looks_like() -> None:
    text = {Label.TEXT_GOOD, Label.TEXT_BAD, Label.BROKEN}
    for label in set(Label) - text:
        assert label.weight > max(one.weight for one in text)


def test_labels_are_summed_by_their_weight() -> None:
    tally = learnt(Label.GOOD, Label.TEXT_GOOD, Label.BAD, Label.CANCEL).tally(HERE)
    assert (tally.answers, tally.trials, tally.successes) == (4, 2.75, 1.25)


def test_the_speed_of_an_answerer_is_known_for_questions_of_every_kind() -> None:
    seen = [outcome(ttft_s=0.2, tokens_per_second=80.0), outcome(tokens_per_second=40.0)]
    snapshot = summarize(seen, ClassicState())
    new = forecast(replace(HERE, category=Category.GREETING), snapshot, None, 1)
    assert (new.tokens_per_second, new.ttft_s, new.evidence) == (60.0, 0.4, 0.0)
    assert forecast(replace(HERE, adapter="a"), snapshot, None, 0).tokens_per_second == 0.0
    seen.append(outcome(arm=new.arm, tokens_per_second=100.0))
    again = forecast(new.arm, summarize(seen, ClassicState()), None, 0)
    assert again.tokens_per_second == 100.0


def test_each_arm_has_its_own_sums() -> None:
    other = replace(HERE, quantization="")
    snapshot = summarize([outcome(Label.BAD), outcome(Label.GOOD, other)], ClassicState())
    assert snapshot.tally(HERE).successes == 0
    assert snapshot.tally(other).successes == 1
    assert snapshot.tally(replace(HERE, adapter="mine")) == Tally()
    assert snapshot.answers == 2


def test_speed_and_cost_are_means_of_what_was_measured_lately() -> None:
    old = [outcome(ttft_s=100.0) for _ in range(5)]
    late = [outcome(ttft_s=2.0, tokens_per_second=10.0, cost=0.5) for _ in range(TIMINGS - 1)]
    unknown = [outcome(cost=0.5)]
    tally = summarize([*old, *late, *unknown], ClassicState()).tally(HERE)
    assert (tally.ttft_s, tally.tokens_per_second, tally.cost) == (2.0, 10.0, 0.5)


def test_explorations_are_counted() -> None:
    explored = replace(outcome(), reason=Reason.EXPLORATION)
    assert summarize([outcome(), explored, explored], ClassicState()).explored == 2


def test_the_classic_policy_learns_from_verdicts_on_the_text() -> None:
    state = learn_classic(ClassicState(), outcome(Label.BAD, passed=True))
    assert (state.total_queries, state.total_successes) == (1, 1)
    assert learn_classic(state, outcome(Label.CANCEL, passed=None)) == state
    state = learn_classic(state, outcome(arm=THERE))
    assert (state.total_queries, state.total_local_attempts) == (2, 1)


# --- the bound ------------------------------------------------------------------------------


def test_wilson_against_its_formula_worked_by_hand() -> None:
    # 8 of 10, z = 1: (0.8 + 0.05 -+ sqrt(0.016 + 0.0025)) / 1.1
    half = math.sqrt(0.0185)
    assert wilson(8, 10, 1) == pytest.approx(((0.85 - half) / 1.1, (0.85 + half) / 1.1))
    assert wilson(0, 0, 1) == (0.0, 1.0)


@given(st.floats(0.01, 1e6), st.floats(0, 1), st.floats(0, 4))
def test_wilson_holds_the_share(trials: float, share: float, z: float) -> None:
    low, high = wilson(trials * share, trials, z)
    assert 0 <= low <= share + 1e-9
    assert share - 1e-9 <= high <= 1


# --- the measured policy --------------------------------------------------------------------


def objects(snapshot: Snapshot, arm: Arm = HERE) -> Reason | None:
    return objection(forecast(arm, snapshot, None, 0), forecast(THERE, snapshot, None, 0))


def test_with_nothing_known_the_local_model_is_good_enough() -> None:
    assert objects(Snapshot()) is None


def test_three_bad_answers_are_too_many_and_two_are_not() -> None:
    assert objects(learnt(Label.BAD, Label.BAD)) is None
    assert objects(learnt(Label.BAD, Label.BAD, Label.BAD)) is Reason.LOW_CONFIDENCE


def test_good_answers_bring_it_back() -> None:
    bad, good = [Label.BAD] * 3, [Label.GOOD] * 2
    assert objects(learnt(*bad, *good)) is None


def test_a_changed_model_begins_anew() -> None:
    snapshot = learnt(*[Label.BAD] * 50)
    for changed in (
        replace(HERE, model="larger"),
        replace(HERE, quantization="int4"),
        replace(HERE, adapter="mine"),
    ):
        assert objects(snapshot, changed) is None


def test_a_cloud_that_is_no_better_is_not_asked() -> None:
    here = [outcome(Label.BAD) for _ in range(10)] + [outcome(Label.GOOD) for _ in range(10)]
    there = [outcome(Label.BAD, THERE) for _ in range(60)]
    assert objects(summarize(here, ClassicState())) is Reason.LOW_CONFIDENCE
    assert objects(summarize([*here, *there], ClassicState())) is None


def test_a_slow_local_model_is_left_for_a_faster_cloud_alone() -> None:
    slow, slower = outcome(ttft_s=30.0), outcome(arm=THERE, ttft_s=40.0)
    assert objects(summarize([slow], ClassicState())) is Reason.BUSY
    assert objects(summarize([slow, slower], ClassicState())) is None


def test_what_is_known_to_be_bad_is_explored_less() -> None:
    doubtful, known = learnt(*[Label.BAD] * 3), learnt(*[Label.BAD] * 30)
    assert curiosity(forecast(HERE, doubtful, None, 0)) > 1.0
    assert curiosity(forecast(HERE, known, None, 0)) < 1.0


@given(st.lists(st.sampled_from(Label), max_size=200))
def test_one_more_good_answer_never_lowers_the_bound(labels: list[Label]) -> None:
    before = forecast(HERE, learnt(*labels), None, 0)
    after = forecast(HERE, learnt(*labels, Label.GOOD), None, 0)
    assert after.bound >= before.bound - 1e-12
    assert 0 <= before.bound <= before.quality <= 1
    assert GOOD_ENOUGH < 1


# --- the text -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "finish", "label"),
    [
        ("Paris.", "stop", Label.TEXT_GOOD),
        ("42", "length", Label.TEXT_GOOD),
        ("I can't stress enough how good it is.", "stop", Label.TEXT_GOOD),
        ("", "stop", Label.TEXT_BAD),
        ("  \n", "stop", Label.TEXT_BAD),
        ("Sure.", "refusal", Label.TEXT_BAD),
        ("I'm sorry, but I can't help with that.", "stop", Label.TEXT_BAD),
        ("I cannot answer this.", "stop", Label.TEXT_BAD),
        ("You cannot divide by zero.", "stop", Label.TEXT_GOOD),
        ("and again and again " * 40, "length", Label.TEXT_BAD),
        (" ".join(map(str, range(200))), "stop", Label.TEXT_GOOD),
    ],
)
def test_a_text_is_judged_by_what_is_plainly_wrong(answer: str, finish: str, label: Label) -> None:
    assert judge(answer, finish) is label


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        # SEMANTICS 1.8: 0.5 at first ...
        ("q", "One sentence of more than twenty letters.", 0.5),
        ("q", "Short.", 0.2),  # -0.3 too short
        ("q", "One sentence that just stops in the middle of", 0.2),  # -0.3 incomplete
        ("q", "", 0.0),  # -0.5 no content, -0.3, -0.3
        ("q", "First sentence here. Second sentence here.", 0.7),  # +0.2 well formatted
        ("rivers France", "The rivers of France are long and wide.", 0.8),  # +0.3 answers
        ("rivers", "Rivers are here. They flow. They end.", 1.0),  # +0.2 +0.3
        ("q", "Here is the code that you want: ```x = 1```", 0.6),  # +0.1 code
        ("q", f"{'x' * 5001}.", 0.4),  # -0.1 too long
        ("q", "a b c a b c a b c and that is all of it.", 0.1),  # -0.4 repetitive
    ],
)
def test_the_originals_score(question: str, answer: str, expected: float) -> None:
    assert score(question, answer) == pytest.approx(expected)
    assert passes(question, answer) is (score(question, answer) >= 0.7)
