"""The sampler's filters are transformers' own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from workers.inference.scheduling.sampler import Sampler, candidates, gumbel_noise
from workers.inference.scheduling.sampling import SamplingPlan

VOCABULARY = 300


def _logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, VOCABULARY).astype(np.float32)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    list(itertools.product((0.3, 1.0, 2.5), (0, 1, 20, VOCABULARY + 5), (1.0, 0.95, 0.5, 1e-6))),
)
def test_the_probabilities_are_those_of_generate(
    temperature: float, top_k: int, top_p: float
) -> None:
    chain = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        chain.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        chain.append(TopPLogitsWarper(top_p))
    for seed in range(5):
        logits = _logits(seed)
        scores = chain(torch.zeros(1, 1, dtype=torch.long), torch.tensor(logits)[None])
        expected = torch.softmax(scores[0].double(), 0).numpy()
        found = np.zeros(VOCABULARY)
        tokens, probabilities = candidates(logits, SamplingPlan(temperature, top_p, top_k))
        found[tokens] = probabilities
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert (np.diff(probabilities) <= 0).all()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (0.7, 20, 0.8),
        (0.7, 0, 0.95),  # a thousand are enough
        (3.0, 0, 0.9),  # sixteen thousand are
        (9.0, 0, 0.9),  # they are not
        (1.0, 0, 1.0),
        (1.0, 5000, 1.0),
    ],
)
def test_a_large_vocabulary_is_drawn_from_as_if_all_of_it_were_sorted(
    temperature: float, top_k: int, top_p: float
) -> None:
    rng = np.random.default_rng(1)
    plan = SamplingPlan(temperature, top_p, top_k, seed=4)
    sampler = Sampler(plan, ())
    for draw in range(20):
        logits = rng.normal(0, 3, 60_000).astype(np.float32)
        logits[::7] = np.round(logits[::7])  # many share a place
        logits[::11] = -np.inf
        order = np.argsort(-logits, kind="stable")
        order = order[: np.count_nonzero(logits >= logits[order[top_k - 1]])] if top_k else order
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
