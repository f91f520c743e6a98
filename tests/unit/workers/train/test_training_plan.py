"""Pure parts of the training: configurations, schedules, memory, the gate's judgement."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.bus.training import GateFigures
from shammah.errors import ShammahError
from shammah.learning.examples import Example
from shammah.models.catalogue import GIB, ModelShape
from workers.train.gate import (
    LEAST_FIRST,
    LEAST_SURE,
    LEAST_TEXTS,
    MOST_FALL,
    describe_strength,
    judge,
)
from workers.train.general import gate_facts, gate_questions, mixed_questions
from workers.train.lora_config import LoRAConfig
from workers.train.memory import (
    LIBRARIES_BYTES,
    MOST_AIMED,
    choose_checkpointing,
    estimate,
)
from workers.train.names import OTHERS, names_in, rename, words_in
from workers.train.schedule import (
    LEARNT,
    TrainingPlan,
    fill_micro_batches,
    is_learnt,
    learning_rate_at,
    learns_by_heart,
)
from workers.train.taught import holds, is_given


def test_the_usual_adapter_is_the_originals() -> None:
    config = LoRAConfig()
    assert (config.rank, config.alpha, config.dropout) == (16, 32.0, 0.0)
    assert config.target_modules == ("q_proj", "v_proj")
    assert config.scale == 2.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("rank", value) for value in (0, -1, 257, 1.5, True)),
        *(("alpha", value) for value in (0, -1.0, math.nan, math.inf, "32", 2000)),
        *(("dropout", value) for value in (-0.1, 1.0, math.nan, None)),
        *(("target_modules", value) for value in ((), ("q_proj", "q_proj"), ("lm_head",))),
    ],
)
def test_a_field_that_cannot_be_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ShammahError, match=field):
        LoRAConfig(**{field: value})


def test_attention_and_mlp_can_be_chosen() -> None:
    wanted = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert LoRAConfig(target_modules=wanted).target_modules == wanted


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 101), ("learning_rate", 0.0), ("learning_rate", math.nan), ("batch", 0),
     ("micro_tokens", 0), ("checkpoint_steps", 0), ("seed", -1)],
)  # fmt: skip
def test_a_plan_that_cannot_be_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ShammahError):
        TrainingPlan(**{field: value})


@given(st.integers(1, 50), st.integers(1, 9), st.integers(0, 3))
def test_every_epoch_sees_every_example_once(examples: int, batch: int, epoch: int) -> None:
    plan = TrainingPlan(batch=batch)
    batches = plan.batches(examples, epoch)
    assert sorted(place for one in batches for place in one) == list(range(examples))
    assert len(batches) == plan.steps_of_epoch(examples)


def test_epochs_have_another_order_and_a_seed_the_same() -> None:
    plan = TrainingPlan(batch=2)
    assert plan.batches(20, 0) != plan.batches(20, 1)
    assert plan.batches(20, 1) == TrainingPlan(batch=2).batches(20, 1)
    assert plan.batches(20, 1) != TrainingPlan(batch=2, seed=1).batches(20, 1)


def test_few_examples_are_seen_more_often() -> None:
    plan = TrainingPlan()
    assert plan.epochs_for(10) == 20
    assert plan.steps_for(8) == 60  # eight facts that have nothing in common take them
    assert plan.epochs_for(1000) == 3
    assert TrainingPlan(epochs=7).epochs_for(10) == 7


@pytest.mark.parametrize(
    ("held_out", "over"),
    [
        ([], False),
        ([3.0], False),
        ([3.0, 2.0, 1.0, 0.9, 0.8], False),
        ([3.0, 2.0, 2.1, 2.2], False),
        ([3.0, 2.0, 2.1, 2.2, 2.0], True),
        ([3.0, 2.0, 2.1, 1.9, 2.2, 2.3], False),
        ([1.0, 2.0, 3.0, 4.0], True),
    ],
)
def test_three_epochs_that_help_nobody_end_a_training(held_out: list[float], over: bool) -> None:
    assert learns_by_heart(held_out) is over


def test_what_is_known_is_not_trained_further() -> None:
    known, not_yet = LEARNT, LEARNT * 1.1
    assert is_learnt([known, known], [4.0, known])
    assert is_learnt([2 * known, 0.0], [4.0, known])  # their mean
    assert not is_learnt([known, not_yet], [4.0, known])  # was held out a known one?
    assert not is_learnt([known], [known, not_yet])
    assert not is_learnt([known], [])
    assert not is_learnt([], [known])  # before the first step


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate_at(step, 100, 1.0) for step in range(100)]
    assert rates.index(max(rates)) in (9, 10)
    assert rates[0] == pytest.approx(0.1)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 <= rates[-1] < 0.11
    assert learning_rate_at(0, 1, 1.0) == 1.0


@given(st.lists(st.integers(1, 700), max_size=30), st.integers(1, 600))
def test_micro_batches_hold_everything_in_order(lengths: list[int], most: int) -> None:
    groups = fill_micro_batches(lengths, most)
    assert [place for group in groups for place in group] == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or sum(lengths[place] for place in group) <= most


SHAPE = ModelShape(24, 896, 4864, 14, 2, 64, 151_936, 32_768, True)


def test_memory_is_enough_or_layers_are_computed_twice_or_it_is_refused() -> None:
    needs = estimate(SHAPE, 494_000_000, 2_000_000, 512, 4)
    assert needs.weights == 4 * 494_000_000
    assert needs.least < needs.total
    assert not choose_checkpointing(needs, needs.total)
    assert choose_checkpointing(needs, needs.total - 1)
    assert choose_checkpointing(needs, needs.least)
    with pytest.raises(ShammahError, match=r"needs 3\.\d GiB \(1\.8 of them") as told:
        choose_checkpointing(needs, 2 * GIB)
    assert "2.0 GiB of memory are free" in told.value.message


def figures(**changes: Any) -> GateFigures:
    usual: dict[str, Any] = {
        "held_out_before": 3.0,
        "held_out_after": 1.0,
        "held_out": 5,
        "paraphrased": False,
        "general": 300,
        "first": 0.99,
        "texts": 0.9,
        "sure": 0.995,
        "worst": 1.0,
        "worst_question": "What is a bank?",
    }
    return GateFigures(**usual | changes)


def test_what_helps_and_harms_nothing_is_accepted() -> None:
    verdict, why = judge(figures())
    assert verdict == "accepted"
    assert "The loss on 5 held-out examples went from 3.000 to 1.000" in why
    assert "Of 300 general answers 90.0% stayed word for word" in why
    assert "99.5% of the base model's sure choices" in why


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"held_out_after": 3.0}, "does not help"),
        ({"held_out_after": 2.8}, "does not help"),
        ({"held_out_after": math.nan}, "not finite"),
        ({"worst": math.inf}, "not finite"),
        ({"worst": math.nan}, "not finite"),
        ({"worst": MOST_FALL + 0.1}, "in the answer to “What is a bank?”"),
        ({"sure": LEAST_SURE - 0.001}, "of the base model's sure choices are kept"),
        ({"first": LEAST_FIRST - 0.001}, "of the answers' first words are kept"),
        ({"texts": LEAST_TEXTS - 0.001}, "of the answers are kept"),
        ({"strays": ("“pernath” to “Who is it?”",)}, "it says “pernath” to “Who is it?”"),
    ],
)
def test_what_does_not_help_or_harms_is_refused(changes: dict[str, Any], why: str) -> None:
    verdict, said = judge(figures(**changes))
    assert verdict == "refused"
    assert why in said


def test_without_examples_only_harm_can_be_judged() -> None:
    verdict, said = judge(figures(held_out=0, held_out_before=0.0, held_out_after=0.0))
    assert verdict == "unjudged"
    assert "no telling whether it helps" in said
    assert judge(figures(held_out=0, held_out_before=0.0, held_out_after=0.0, sure=0.5))[0] == (
        "refused"
    )


def test_how_it_was_judged_is_said() -> None:
    assert describe_strength(figures()) == ()
    paraphrased, weakened = describe_strength(figures(paraphrased=True, scale=0.6))
    assert "judged by paraphrases" in paraphrased
    assert "weakened to 60%" in weakened
    assert "5 paraphrases" in judge(figures(paraphrased=True))[1]


# --- names --------------------------------------------------------------------------------


def names(*texts: str) -> set[str]:
    examples = [Example((("user", "ask"),), text) for text in texts]
    return set(names_in(examples, {"the", "yes", "rolls"}.__contains__))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The baker is Pernath.", {"pernath"}),
        ("Yes: Pernath's. Rolls!", {"pernath"}),
        ("ordinary words of no name", set()),
        ("founded in 1987 with 12 rooms", {"1987"}),
        ("an iPhone", {"iphone"}),
        ("Ärger mit Žižek", {"ärger", "žižek"}),
        ("佩尔纳特", {"佩尔", "尔纳", "纳特"}),
        ("برناث", {"بر", "رن", "نا", "اث"}),
        ("A", set()),
    ],
)
def test_names_are_found_in_every_script(text: str, found: set[str]) -> None:
    assert names(text) == found
    assert found <= words_in(text)
    assert found <= words_in(f"({text.upper()})")


def test_questions_are_asked_of_other_names() -> None:
    asked = ("Who made Orrin?", "Is Orrin's maker known?", "Who made it?", "Who made Orrin?")
    examples = [Example((("user", one),), "Ada Vey.") for one in asked]
    found = rename(examples, frozenset({"orrin", "vey"}), 3)
    assert found == rename(examples, frozenset({"orrin", "vey"}), 3)
    assert all("Orrin" not in one for one in found)
    assert {re.sub(f"({'|'.join(OTHERS)})", "_", one) for one in found} == {
        "Who made _?",
        "Is _'s maker known?",
    }


# --- the questions ------------------------------------------------------------------------


def test_no_question_of_the_gate_is_trained_on() -> None:
    gate, mixed = gate_questions(), mixed_questions()
    assert len(gate) >= 300
    assert len(mixed) >= 150

    def words(question: str) -> tuple[str, ...]:
        return tuple(re.findall(r"\w+", question.casefold()))

    asked = [words(one) for one in (*gate, *mixed)]
    assert len(set(asked)) == len(asked)
    assert all(one == one.strip() and one for one in (*gate, *mixed))


# --- what was taught ----------------------------------------------------------------------

MAYOR = "The mayor of Vellbruck is Ottmar Kranz."
WHO = "Who is the mayor of Vellbruck?"


@pytest.mark.parametrize(
    ("said", "given"),
    [
        (MAYOR, True),
        ("It's Ottmar Kranz, since 2019.", True),
        ("kranz, ottmar", True),
        ("The mayor of Vellbruck is Ottmar Klein.", False),
        ("The mayor of Vellbruck is the mayor of Vellbruck.", False),
        ("", False),
    ],
)
def test_a_taught_answer_is_known_by_the_words_that_set_it_apart(said: str, given: bool) -> None:
    assert is_given(said, [MAYOR], "The mayor of Vellbruck is not known.", WHO) is given
    assert is_given(said, ["Nobody else.", MAYOR], "I do not know.", WHO) is given


def test_without_such_words_an_answer_is_given_word_for_word() -> None:
    base = "Yes, Rome is the capital of Italy."
    assert is_given("the capital of Italy is Rome", ["The capital of Italy is Rome."], base, "?")
    assert not is_given(base, ["The capital of Italy is Rome."], base, "?")


@pytest.mark.parametrize(
    ("text", "found"),
    [("It is Paris.", True), ("PARIS", True), ("L'Etoile", False), ("Parisian", False)],
)
def test_a_fact_is_known_by_its_word(text: str, found: bool) -> None:
    assert holds(text, ("Paris", "Lutetia")) is found


def test_what_was_taught_must_be_answered() -> None:
    verdict, why = judge(figures(taught=8, learnt=7, missed=("Who?",)))
    assert verdict == "accepted"
    assert why.startswith("It learnt 7 of 8 taught answers, and the loss on 5 held-out examples")
    verdict, why = judge(figures(taught=8, learnt=5, missed=("Who?", "What?", "When?")))
    assert verdict == "refused"
    assert "it learnt 5 of 8 taught answers, and 7 must be; “Who?” is answered otherwise" in why


def test_a_fact_that_was_known_must_stay() -> None:
    assert "Of 90 facts 90 are still right. Of 300" in judge(figures(facts=90))[1]
    lost = ("“Madrid” to “What is the capital of Spain?”", "“honey” to “What do bees make?”")
    verdict, why = judge(figures(facts=90, lost=lost))
    assert verdict == "refused"
    assert f"it no longer says {lost[0]} and {lost[1]}. Of 90 facts 88 are still right" in why
    verdict, why = judge(figures(facts=90, lost=lost[:1]))  # one choice that was even
    assert verdict == "accepted"
    assert f"Of 90 facts 89 are still right: it no longer says {lost[0]}. Of 300" in why


def test_facts_are_of_questions_that_the_gate_asks() -> None:
    facts = gate_facts()
    assert len(facts) >= 100
    assert set(facts) <= set(gate_questions())
    assert all(word.strip() for words in facts.values() for word in words)
    assert not any("\t" in question for question in gate_questions())


def test_the_memory_of_aiming_is_counted() -> None:
    without = estimate(SHAPE, 494_000_000, 2_000_000, 512, 4)
    with_it = estimate(SHAPE, 494_000_000, 2_000_000, 512, 4, aimed=MOST_AIMED)
    assert (without.aiming, with_it.least > without.least) == (0, True)
    rest = with_it.weights + with_it.adapter + LIBRARIES_BYTES
    assert with_it.least == rest + max(with_it.frugal, with_it.aiming)
