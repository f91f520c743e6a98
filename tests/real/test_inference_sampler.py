"""The sampler's filters are transformers' own."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from workers.inference.runner import Candidates
from workers.inference.scheduling.sampler import Sampler, candidates, gumbel_noise
from workers.inference.scheduling.sampling import SamplingPlan

VOCABULARY = 300


def _logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, VOCABULARY).astype(np.float32)


def _warpers(plan: SamplingPlan) -> LogitsProcessorList:
    """As ``generate`` puts them together."""
    chain = LogitsProcessorList([TemperatureLogitsWarper(plan.temperature)])
    if plan.top_k:
        chain.append(TopKLogitsWarper(plan.top_k))
    if plan.top_p < 1:
        chain.append(TopPLogitsWarper(plan.top_p))
    if plan.min_p > 0:
        chain.append(MinPLogitsWarper(plan.min_p))
    return chain


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    list(
        itertools.product(
            (0.3, 1.0, 2.5), (0, 1, 20, VOCABULARY + 5), (1.0, 0.95, 0.5, 1e-6), (0.0, 0.05, 1.0)
        )
    ),
)
def test_the_probabilities_are_those_of_generate(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    plan = SamplingPlan(temperature, top_p, top_k, min_p=min_p)
    for seed in range(5):
        logits = _logits(seed)
        scores = _warpers(plan)(torch.zeros(1, 1, dtype=torch.long), torch.tensor(logits)[None])
        expected = torch.softmax(scores[0].double(), 0).numpy()
        found = np.zeros(VOCABULARY)
        tokens, probabilities = candidates(logits, plan)
        found[tokens] = probabilities
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert (np.diff(probabilities) <= 0).all()


PLANS = {
    "qwen2.5": SamplingPlan(0.7, 0.8, 20, 1.05, seed=1),
    "qwen3": SamplingPlan(0.6, 0.95, 20, min_p=0.02, presence_penalty=1.5, seed=2),
    "greedy": SamplingPlan(repetition_penalty=1.1, presence_penalty=0.7),
    "plain greedy": SamplingPlan(),
    "min_p alone": SamplingPlan(1.5, min_p=0.1, repetition_penalty=1.2, seed=3),
    "top_p alone": SamplingPlan(0.7, 0.8, presence_penalty=2.0, seed=4),
    "everything": SamplingPlan(1.2, repetition_penalty=1.3, seed=5),
    "rewards": SamplingPlan(0.9, 0.9, 30, 0.8, presence_penalty=-0.5, seed=6),
    "most": SamplingPlan(2.0, 0.99, 1000, 1.1, seed=7),
    "too many": SamplingPlan(1.0, 1.0, 1500, 1.1, seed=8),
}


def _best(logits: np.ndarray, count: int, asked: list[int]) -> Candidates:
    """What a runner gives that looks for the best itself; ``asked`` counts who wanted all."""

    def whole() -> np.ndarray:
        asked.append(1)
        return logits

    found = torch.tensor(logits).topk(count)
    bound = np.nextafter(float(found.values[-1]), np.inf)
    return Candidates(found.indices.numpy(), found.values.numpy(), bound, whole)


def _draw_by_blocks(logits: np.ndarray, plan: SamplingPlan, seed: int, draw: int) -> int:
    """The likeliest block after noise, its likeliest token after noise, and anew among what is
    likelier if that is not of those that may come."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / plan.temperature)
    order = np.argsort(-weights, kind="stable")
    before = np.cumsum(weights[order]) - weights[order]
    nucleus = order[before < plan.top_p * weights.sum()]
    may = nucleus[weights[nucleus] >= plan.min_p]
    weights = np.pad(np.where(weights >= plan.min_p, weights, 0), (0, -len(weights) % 64))
    tokens = np.arange(len(weights)).reshape(64, -1)
    blocks = len(weights) + np.arange(tokens.shape[1])
    for attempt in itertools.count():
        number = draw + attempt * 2**40
        with np.errstate(divide="ignore"):
            sums = np.log(weights[tokens].sum(0)) + gumbel_noise(seed, number, blocks)
            own = tokens[:, sums.argmax()]
            token = own[(np.log(weights[own]) + gumbel_noise(seed, number, own)).argmax()]
        if token in may:
            break
        weights[weights <= weights[token]] = 0
    return int(token)


@pytest.mark.parametrize("name", PLANS)
def test_eight_answers_are_token_for_token_those_of_generates_own_filters(name: str) -> None:
    """From all logits, and from the best ones alone."""
    plan, rows, size = PLANS[name], 8, 20_000
    rng = np.random.default_rng(7)
    habits = rng.normal(0, 2, (rows, size))
    prompts = [rng.integers(0, size, 300).tolist() for _ in range(rows)]
    ids = torch.tensor(prompts)
    plans = [replace(plan, seed=row) for row in range(rows)]
    pairs = [[Sampler(plans[row], prompts[row]) for row in range(rows)] for _ in range(2)]
    asked: list[int] = []
    for draw in range(24):
        logits = (habits + rng.normal(0, 2, habits.shape)).astype(np.float32)
        if plan.top_p == 1:  # (of equal ones on its edge, transformers keeps any)
            logits = logits.astype(np.float16).astype(np.float32)  # as a GPU's: many are equal
        processed = RepetitionPenaltyLogitsProcessor(plan.repetition_penalty)(
            ids, torch.tensor(logits)
        )
        for row, written in enumerate(ids[:, 300:]):
            processed[row, written.unique()] -= plan.presence_penalty
        if plan.temperature:
            filtered = _warpers(plan)(ids, processed).double().log_softmax(-1).numpy()
            every = np.arange(size)
            if plan.top_k or plan.min_p:
                noise = np.stack([gumbel_noise(one.seed, draw, every) for one in plans])
                expected = (filtered + noise).argmax(-1).tolist()
            else:
                pairs_of_rows = zip(processed.numpy(), range(rows), strict=True)
                expected = [_draw_by_blocks(row, plan, seed, draw) for row, seed in pairs_of_rows]
        else:
            expected = processed.argmax(-1).tolist()
        whole, best = pairs
        assert [one.choose(row) for one, row in zip(whole, logits, strict=True)] == expected
        top = best[0].top
        some = [_best(row, top, asked) if top else row for row in logits]
        assert [one.choose(row) for one, row in zip(best, some, strict=True)] == expected
        ids = torch.cat([ids, torch.tensor(expected)[:, None]], 1)
    assert len(asked) < 20
    assert pairs[0][0].top == 0 or name not in ("top_p alone", "everything", "rewards", "too many")


def test_all_logits_are_asked_for_where_the_best_ones_do_not_decide() -> None:
    logits = np.linspace(0, 1, VOCABULARY).astype(np.float32)
    prompt = range(VOCABULARY - 70, VOCABULARY)  # all that a runner takes for the best
    asked: list[int] = []
    sampler = Sampler(SamplingPlan(repetition_penalty=3.0), prompt)
    assert sampler.choose(_best(logits, sampler.top, asked)) == VOCABULARY - 71
    logits[:] = 1.0  # and where more of them are equal
    sampler = Sampler(SamplingPlan(), ())
    assert sampler.choose(_best(logits, sampler.top, asked)) == 0
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (0.7, 20, 0.8, 0.0),
        (0.7, 0, 0.95, 0.0),
        (9.0, 0, 0.2, 0.0),
        (9.0, 0, 0.9, 0.3),
        (9.0, 0, 1.0, 0.1),
        (1.0, 0, 1.0, 0.0),
        (1.0, 5000, 1.0, 0.0),
    ],
)
def test_a_large_vocabulary_is_drawn_from_as_if_all_of_it_were_sorted(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    rng = np.random.default_rng(1)
    plan = SamplingPlan(temperature, top_p, top_k, seed=4, min_p=min_p)
    sampler = Sampler(plan, ())
    for draw in range(20):
        logits = rng.normal(0, 3, 60_000).astype(np.float32)
        logits[::7] = np.round(logits[::7])  # many share a place
        logits[::11] = -np.inf
        if not top_k:
            assert sampler.choose(logits) == _draw_by_blocks(logits, plan, 4, draw)
            continue
        order = np.argsort(-logits, kind="stable")
        order = order[: np.count_nonzero(logits >= logits[order[top_k - 1]])]
        weights = np.exp((logits[order].astype(np.float64) - logits.max()) / temperature)
        shares = weights / weights.sum()
        kept = order[np.cumsum(shares) - shares < top_p] if top_p < 1 else order
        with np.errstate(divide="ignore"):
            sums = np.log(weights[: len(kept)]) + gumbel_noise(4, draw, kept)
        assert sampler.choose(logits) == kept[sums.argmax()]


@pytest.mark.parametrize("penalty", [0.5, 1.3])
def test_the_repetition_penalty_is_that_of_generate(penalty: float) -> None:
    prompt = (3, 5, 5, 250)
    for seed in range(20):
        logits = _logits(seed)
        process = RepetitionPenaltyLogitsProcessor(penalty)
        expected = process(torch.tensor([prompt]), torch.tensor(logits)[None])[0]
        sampler = Sampler(SamplingPlan(repetition_penalty=penalty), prompt)
        assert sampler.choose(logits) == int(expected.argmax())


def test_a_token_that_was_chosen_is_penalised_too() -> None:
    logits = np.zeros(10, np.float32)
    logits[4], logits[7] = 3.0, 2.9
    sampler = Sampler(SamplingPlan(repetition_penalty=2.0), ())
    assert [sampler.choose(logits) for _ in range(2)] == [4, 7]


def test_tokens_come_as_often_as_they_should() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2, 1e-9], np.float32))
    sampler = Sampler(SamplingPlan(1.0, top_k=3, seed=1), ())
    counts = np.bincount([sampler.choose(logits) for _ in range(4000)], minlength=4)
    np.testing.assert_allclose(counts / 4000, [0.5, 0.3, 0.2, 0], atol=0.03)


@pytest.mark.parametrize(("top_p", "min_p"), [(1.0, 0.0), (0.6, 0.0), (1.0, 0.3), (0.9, 0.3)])
def test_of_many_tokens_they_come_as_often_as_they_should(top_p: float, min_p: float) -> None:
    """Twelve that can come, in blocks of one, two and more, among thousands that hardly can."""
    logits = np.full(6400, -15.0, np.float32)
    places = np.array([0, 100, 200, 1, 101, 5, 6, 7, 306, 1006, 6399, 4242])
    logits[places] = np.log(np.arange(1, 13))
    plan = SamplingPlan(1.0, top_p, 0, seed=1, min_p=min_p)
    sampler, count = Sampler(plan, ()), 3000
    found = np.bincount([sampler.choose(logits) for _ in range(count)], minlength=6400)
    tokens, probabilities = candidates(logits, plan)
    expected = np.zeros(6400)
    expected[tokens] = probabilities
    # Five standard deviations.
    assert (abs(found - count * expected) <= 1 + 5 * np.sqrt(count * expected)).all()


def test_a_seed_repeats_and_its_absence_does_not() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingPlan(1.5, seed=seed), ())
        return [sampler.choose(_logits(number)) for number in range(30)]

    assert draw(4) == draw(4) != draw(5)
    assert draw(None) != draw(None)


def test_the_last_bits_of_the_logits_do_not_change_a_draw() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, 50_000).astype(np.float32)
    for seed in range(200):
        near = logits * (1 + rng.normal(0, 1e-6, len(logits)).astype(np.float32))
        plan = SamplingPlan(1.5, 1.0, 0, 1.0, seed)
        assert Sampler(plan, ()).choose(logits) == Sampler(plan, ()).choose(near)


def test_the_noise_is_gumbels() -> None:
    noise = gumbel_noise(5, 2, np.arange(200_000))
    assert abs(noise.mean() - np.euler_gamma) < 0.01
    assert abs(noise.var() - np.pi**2 / 6) < 0.02
    assert abs(np.corrcoef(noise, gumbel_noise(5, 3, np.arange(200_000)))[0, 1]) < 0.01
    assert (gumbel_noise(5, 2, np.array([7, 99_999])) == noise[[7, 99_999]]).all()


def test_the_logits_are_left_as_they_were() -> None:
    logits = _logits(0)
    before = logits.copy()
    Sampler(SamplingPlan(0.7, 0.9, 10, 1.2, 1), (1, 2, 3)).choose(logits)
    assert (logits == before).all()
