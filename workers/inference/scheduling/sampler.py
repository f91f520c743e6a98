"""Chooses the next token of one sequence from the model's logits.

The filters and their order are those of transformers' ``generate``
(``generation/logits_process.py``), so that the numbers of a model's authors mean here what
they meant to them.

Logits differ in their last bits with the size of the batch and of the chunks. So that a seed
gives the same answer in any company, a token is drawn by the Gumbel-max trick (Maddison et al.
2014, "A* sampling"): the likeliest after noise of its own is added to each. Drawing from the
cumulated probabilities instead, one in twenty draws changed with those bits.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from shammah.errors import ShammahError
from workers.inference.runner import Logits
from workers.inference.scheduling.sampling import SamplingPlan

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Sampler:
    """One per sequence: its random numbers depend on nothing but its seed."""

    def __init__(self, plan: SamplingPlan, prompt: Iterable[int]) -> None:
        self._plan = plan
        self._seen = set(prompt) if plan.repetition_penalty != 1.0 else None
        self._seed = secrets.randbits(63) if plan.seed is None else plan.seed
        self._draws = 0

    def choose(self, logits: Logits) -> int:
        """The next token, from logits of shape (vocabulary,).

        Raises:
            ShammahError: ``generation_failed``: the logits are not numbers.
        """
        if not np.isfinite(logits.max()):  # NaN, too; minus infinity is a token never to be chosen
            raise ShammahError(
                "generation_failed",
                "The local model produced NaN or infinite values.",
                "Its files may be damaged. Check them with `shammah models verify`.",
            )
        scores = self._penalised(logits)
        if self._plan.temperature == 0:
            token = int(np.argmax(scores))
        else:
            tokens, probabilities = candidates(scores, self._plan)
            noise = gumbel_noise(self._seed, self._draws, tokens)
            self._draws += 1
            token = int(tokens[np.argmax(np.log(probabilities) + noise)])
        if self._seen is not None:
            self._seen.add(token)
        return token

    def _penalised(self, logits: Logits) -> Logits:
        """Less for every token that was there before (Keskar et al. 2019, section 4.1)."""
        if self._seen is None:
            return logits
        ids = np.fromiter(self._seen, np.int64, len(self._seen))
        scores = logits.copy()
        found = scores[ids]
        penalty = np.float32(self._plan.repetition_penalty)
        scores[ids] = np.where(found < 0, found * penalty, found / penalty)
        return scores


def candidates(scores: Logits, plan: SamplingPlan) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that may come next and their probabilities, the likeliest first.

    Temperature, then the ``top_k`` likeliest, then the fewest that together have ``top_p``
    (Holtzman et al. 2020).
    """
    if 0 < plan.top_k < len(scores):
        likeliest = np.argpartition(scores, -plan.top_k)[-plan.top_k :]
        # As many as share the last place, so that the choice does not hang on their order.
        tokens = np.flatnonzero(scores >= scores[likeliest].min())
    else:
        tokens = np.arange(len(scores))
    tokens = tokens[np.argsort(-scores[tokens], kind="stable")]
    scaled = scores[tokens].astype(np.float64) / plan.temperature
    weights = np.exp(scaled - scaled[0])
    probabilities = weights / weights.sum()
    if plan.top_p < 1.0:
        before = np.cumsum(probabilities) - probabilities
        kept = max(1, int(np.searchsorted(before, plan.top_p, "left")))
        tokens, probabilities = tokens[:kept], probabilities[:kept] / probabilities[:kept].sum()
    return tokens, probabilities


def gumbel_noise(seed: int, draw: int, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Standard Gumbel numbers that hang on seed, draw and token alone.

    From SplitMix64 (Steele et al. 2014) used as a hash, because the token's own number, not
    its place among the candidates, must determine its noise.
    """
    key = _mix(np.array([seed], np.uint64) ^ _mix(np.array([draw], np.uint64)))
    bits = _mix(key + tokens.astype(np.uint64) * _GOLDEN)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(-np.log(uniform))


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
