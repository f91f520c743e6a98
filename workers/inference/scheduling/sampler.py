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

_BLOCK = 64
"""Tokens whose best one is looked at first."""
_FEW = 1024
"""Tokens among which nearly always all of ``top_p`` is."""
_ROUNDING = 1e-5
"""More than what float32 gets wrong of an exponential."""
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
        token = int(np.argmax(scores)) if self._plan.temperature == 0 else self._draw(scores)
        if self._seen is not None:
            self._seen.add(token)
        return token

    def _draw(self, scores: Logits) -> int:
        draw, self._draws = self._draws, self._draws + 1
        if self._plan.top_p == 1.0 and self._plan.top_k == 0 and len(scores) > _FEW:
            return _draw_from_all(scores, self._plan.temperature, self._seed, draw)
        tokens, probabilities = candidates(scores, self._plan)
        noise = gumbel_noise(self._seed, draw, tokens)
        return int(tokens[np.argmax(np.log(probabilities) + noise)])

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
        tokens, weights = _weigh(scores, plan.top_k, plan.temperature)
        return _nucleus(tokens, weights / weights.sum(), plan.top_p)
    if plan.top_p < 1.0:
        largest, factor = scores.max(), np.float32(1 / plan.temperature)
        whole = float(np.exp((scores - largest) * factor).sum(dtype=np.float64))
        for count in range(_FEW, min(len(scores), 16 * _FEW + 1), 15 * _FEW):
            tokens, weights = _weigh(scores, count, plan.temperature)
            if weights.sum() > (plan.top_p + _ROUNDING) * whole:
                return _nucleus(tokens, weights / whole, plan.top_p)
    tokens, weights = _weigh(scores, len(scores), plan.temperature)
    return _nucleus(tokens, weights / weights.sum(), plan.top_p)


def _weigh(
    scores: Logits, count: int, temperature: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The ``count`` likeliest tokens, the likeliest first, and how likely each is compared with
    that one."""
    tokens = likeliest(scores, count)
    tokens = tokens[np.argsort(-scores[tokens], kind="stable")]
    scaled = scores[tokens].astype(np.float64) / temperature
    return tokens, np.exp(scaled - scaled[0])


def _nucleus(
    tokens: NDArray[np.int64], probabilities: NDArray[np.float64], top_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if top_p == 1.0:
        return tokens, probabilities
    before = np.cumsum(probabilities) - probabilities
    kept = max(1, int(np.searchsorted(before, top_p, "left")))
    return tokens[:kept], probabilities[:kept] / probabilities[:kept].sum()


def likeliest(scores: Logits, count: int) -> NDArray[np.int64]:
    """The ``count`` tokens with the highest scores, and as many as share the last place, so that
    the choice does not hang on their order.

    Nothing is sorted: of the ``count`` blocks of tokens with the best ones each has one that is at
    least as good as the worst of these, so what is below that is none of them. That leaves some
    hundreds of a hundred thousand.
    """
    blocks = len(scores) // _BLOCK
    tokens = np.arange(len(scores))
    if count < blocks:
        best = scores[: blocks * _BLOCK].reshape(_BLOCK, blocks).max(0)
        tokens = np.flatnonzero(scores >= np.partition(best, -count)[-count])
    if count >= len(scores):
        return tokens
    found = scores[tokens]
    kept: NDArray[np.int64] = tokens[found >= np.partition(found, -count)[-count]]
    return kept


def _draw_from_all(scores: Logits, temperature: float, seed: int, draw: int) -> int:
    """The token with the highest sum of score and noise, computed for those alone that can have it.

    A token overtakes the best one b of some hundreds only if -log u < exp(s - b), for its uniform
    number u, and 1 - u is less than -log u.
    """
    some = likeliest(scores, _FEW)
    best = (scores[some].astype(np.float64) / temperature + gumbel_noise(seed, draw, some)).max()
    ahead = np.exp(scores * np.float32(1 / temperature) - np.float32(best))
    every = np.arange(len(scores))
    able = every[1 - _uniform(seed, draw, every) <= ahead * (1 + _ROUNDING)]
    sums = scores[able].astype(np.float64) / temperature + gumbel_noise(seed, draw, able)
    return int(able[sums.argmax()])


def gumbel_noise(seed: int, draw: int, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Standard Gumbel numbers that hang on seed, draw and token alone.

    From SplitMix64 (Steele et al. 2014) used as a hash, because the token's own number, not
    its place among the candidates, must determine its noise.
    """
    return -np.log(-np.log(_uniform(seed, draw, tokens)))


def _uniform(seed: int, draw: int, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    key = _mix(np.array([seed], np.uint64) ^ _mix(np.array([draw], np.uint64)))
    bits = _mix(key + tokens.astype(np.uint64) * _GOLDEN)
    uniform: NDArray[np.float64] = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return uniform


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
