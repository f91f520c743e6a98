"""Chooses the next token of one sequence from the model's logits.

The filters and their order are those of transformers' ``generate``
(``generation/logits_process.py``), so that the numbers of a model's authors mean here what
they meant to them. Its presence penalty, which transformers has not, is that of vLLM and OpenAI.

Logits differ in their last bits with the size of the batch and of the chunks. So that a seed
gives the same answer in any company, a token is drawn by the Gumbel-max trick (Maddison et al.
2014, "A* sampling"): the likeliest after noise of its own is added to each. Drawing from the
cumulated probabilities instead, one in twenty draws changed with those bits.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from shammah.errors import ShammahError
from workers.inference.runner import Candidates, Logits
from workers.inference.scheduling.sampling import SamplingPlan

_BLOCK = 64
"""Tokens whose best one is looked at first."""
_FEW = 1024
"""Tokens among which nearly always all of ``top_p`` is."""
_SPARE = 64
"""Candidates beyond those that are to be kept, which penalties and equal logits may ask for."""
_ROUNDING = 1e-5
"""More than what float32 gets wrong of an exponential."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Tokens = NDArray[np.int64]
Weights = NDArray[np.float64]


class Sampler:
    """One per sequence: its random numbers depend on nothing but its seed.

    Attributes:
        top: so many candidates are nearly always enough; 0: all logits are needed.
    """

    def __init__(self, plan: SamplingPlan, prompt: Iterable[int]) -> None:
        self._plan = plan
        self._repeats = plan.repetition_penalty != 1.0
        self._seen = set(prompt) if self._repeats else set[int]()
        self._written = set[int]()
        self._seed = secrets.randbits(63) if plan.seed is None else plan.seed
        self._draws = 0
        self.top = _enough(plan)

    def choose(self, row: Logits | Candidates) -> int:
        """The next token, from logits of shape (vocabulary,) or from candidates.

        Raises:
            ShammahError: ``generation_failed``: the logits are not numbers.
        """
        if isinstance(row, Candidates):
            token, whole = self._choose_among(row), row.whole
        elif self.top:
            token, whole = self._choose_among(shortlist(row, self.top)), lambda: row
        else:
            token, whole = None, lambda: row
        if token is None:
            token = self._choose_of_all(whole())
        if self._repeats:
            self._seen.add(token)
        if self._plan.presence_penalty:
            self._written.add(token)
        return token

    def _choose_among(self, some: Candidates) -> int | None:
        """The next token, or nothing, if one that is no candidate could change the choice."""
        _check(some.logits)
        places = np.argsort(some.tokens)  # of equal ones the first is taken, as from all
        tokens, scores, plan = some.tokens[places], some.logits[places], self._plan
        if self._seen or self._written:
            numbers = tokens.tolist()
            seen = [place for place, token in enumerate(numbers) if token in self._seen]
            written = [place for place, token in enumerate(numbers) if token in self._written]
            scores = _penalise(scores, seen, written, plan)
        if some.least > -math.inf and not _least_kept(scores, plan) > some.least:
            return None
        if plan.temperature == 0:
            return int(tokens[scores.argmax()])
        kept, probabilities = candidates(scores, plan)
        return self._draw(tokens[kept], probabilities)

    def _choose_of_all(self, logits: Logits) -> int:
        _check(logits)
        plan, scores = self._plan, logits
        if self._seen or self._written:
            known = [token for token in self._seen if token < len(logits)]
            scores = _penalise(logits.copy(), known, list(self._written), plan)
        if plan.temperature == 0:
            return int(scores.argmax())
        if plan.top_p == 1.0 and plan.top_k == 0 and plan.min_p == 0.0 and len(scores) > _FEW:
            draw, self._draws = self._draws, self._draws + 1
            return _draw_from_all(scores, plan.temperature, self._seed, draw)
        return self._draw(*candidates(scores, plan))

    def _draw(self, tokens: Tokens, probabilities: Weights) -> int:
        draw, self._draws = self._draws, self._draws + 1
        noise = gumbel_noise(self._seed, draw, tokens)
        return int(tokens[np.argmax(np.log(probabilities) + noise)])


def _enough(plan: SamplingPlan) -> int:
    """See `Sampler.top`."""
    if plan.repetition_penalty < 1.0 or plan.presence_penalty < 0.0:
        return 0  # any token may rise
    if plan.temperature == 0:
        return _SPARE
    if plan.top_k:
        return 2 * plan.top_k + _SPARE if plan.top_k <= _FEW else 0
    return 4 * _SPARE if plan.min_p > 0.0 and plan.top_p == 1.0 else 0


def _least_kept(scores: Logits, plan: SamplingPlan) -> float:
    """What a token's score must at least be for it to count at all."""
    if plan.temperature == 0:
        return float(scores.max())
    if plan.top_k:
        return float(np.partition(scores, -plan.top_k)[-plan.top_k])
    return float(scores.max()) + plan.temperature * math.log(plan.min_p) - _ROUNDING


def _check(logits: Logits) -> None:
    if not np.isfinite(logits.max()):  # NaN, too; minus infinity is a token never to be chosen
        raise ShammahError(
            "generation_failed",
            "The local model produced NaN or infinite values.",
            "Its files may be damaged. Check them with `shammah models verify`.",
        )


def _penalise(scores: Logits, seen: list[int], written: list[int], plan: SamplingPlan) -> Logits:
    """Less for every token that was there before (Keskar et al. 2019, section 4.1), and less for
    every one of the answer; ``scores`` is changed."""
    found = scores[seen]
    penalty = np.float32(plan.repetition_penalty)
    scores[seen] = np.where(found < 0, found * penalty, found / penalty)
    scores[written] -= np.float32(plan.presence_penalty)
    return scores


def candidates(scores: Logits, plan: SamplingPlan) -> tuple[Tokens, Weights]:
    """The tokens that may come next and their probabilities, the likeliest first.

    Temperature, then the ``top_k`` likeliest, then the fewest that together have ``top_p``
    (Holtzman et al. 2020), then those that are at least ``min_p`` times as likely as the likeliest
    (Nguyen et al. 2024).
    """
    if 0 < plan.top_k < len(scores):
        tokens, weights = _weigh(scores, plan.top_k, plan.temperature)
        return _nucleus(tokens, weights / weights.sum(), plan)
    if plan.top_p < 1.0:
        largest, factor = scores.max(), np.float32(1 / plan.temperature)
        whole = float(np.exp((scores - largest) * factor).sum(dtype=np.float64))
        for count in range(_FEW, min(len(scores), 16 * _FEW + 1), 15 * _FEW):
            tokens, weights = _weigh(scores, count, plan.temperature)
            if weights.sum() > (plan.top_p + _ROUNDING) * whole:
                return _nucleus(tokens, weights / whole, plan)
    tokens, weights = _weigh(scores, len(scores), plan.temperature)
    return _nucleus(tokens, weights / weights.sum(), plan)


def _weigh(scores: Logits, count: int, temperature: float) -> tuple[Tokens, Weights]:
    """The ``count`` likeliest tokens, the likeliest first, and how likely each is compared with
    that one."""
    tokens = likeliest(scores, count)
    tokens = tokens[np.argsort(-scores[tokens], kind="stable")]
    scaled = scores[tokens].astype(np.float64) / temperature
    return tokens, np.exp(scaled - scaled[0])


def _nucleus(tokens: Tokens, probabilities: Weights, plan: SamplingPlan) -> tuple[Tokens, Weights]:
    kept = len(tokens)
    if plan.top_p < 1.0:
        before = np.cumsum(probabilities) - probabilities
        kept = max(1, int(np.searchsorted(before, plan.top_p, "left")))
    if plan.min_p > 0.0:
        least = plan.min_p * probabilities[0]
        kept = min(kept, max(1, int(np.count_nonzero(probabilities >= least))))
    if kept == len(tokens):
        return tokens, probabilities
    return tokens[:kept], probabilities[:kept] / probabilities[:kept].sum()


def likeliest(scores: Logits, count: int) -> Tokens:
    """The ``count`` tokens with the highest scores, and as many as share the last place, so that
    the choice does not hang on their order."""
    if count >= len(scores):
        return np.arange(len(scores))
    some = shortlist(scores, count)
    kept: Tokens = some.tokens[some.logits >= np.partition(some.logits, -count)[-count]]
    return kept


def shortlist(scores: Logits, count: int) -> Candidates:
    """The ``count`` tokens with the highest scores and some more, in the order of the tokens.

    Nothing is sorted: of the ``count`` blocks of tokens with the best ones each has one that is at
    least as good as the worst of these, so what is below that is none of them. That leaves some
    hundreds of a hundred thousand.
    """
    blocks = len(scores) // _BLOCK
    if count >= blocks:
        return Candidates(np.arange(len(scores)), scores, -math.inf, lambda: scores)
    best = scores[: blocks * _BLOCK].reshape(_BLOCK, blocks).max(0)
    least = np.partition(best, -count)[-count]
    tokens = np.flatnonzero(~(scores < least))  # what is no number, too
    return Candidates(tokens, scores[tokens], float(least), lambda: scores)


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


def gumbel_noise(seed: int, draw: int, tokens: Tokens) -> Weights:
    """Standard Gumbel numbers that hang on seed, draw and token alone.

    From SplitMix64 (Steele et al. 2014) used as a hash, because the token's own number, not
    its place among the candidates, must determine its noise.
    """
    return -np.log(-np.log(_uniform(seed, draw, tokens)))


def _uniform(seed: int, draw: int, tokens: Tokens) -> Weights:
    key = _mix(np.array([seed], np.uint64) ^ _mix(np.array([draw], np.uint64)))
    bits = _mix(key + tokens.astype(np.uint64) * _GOLDEN)
    uniform: Weights = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return uniform


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
