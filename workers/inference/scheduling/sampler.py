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

import functools
import math
import secrets
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from shammah.errors import ShammahError
from workers.inference.engine import Constraint
from workers.inference.runner import Candidates, Logits
from workers.inference.scheduling.sampling import SamplingPlan

_BLOCK = 64
"""Tokens whose best one is looked at first."""
_FEW = 1024
"""Tokens that are sorted and have noise each, rather than blocks of them."""
_SPARE = 64
"""Candidates beyond those that are to be kept, for penalties to choose from."""
_EQUAL = 16
"""The same without penalties: several may have the same logit."""
_ROUNDING = 1e-5
"""More than what float32 gets wrong of an exponential."""
_PART = 16_384
"""Scores whose exponentials are computed at once: what is small stays in a cache."""
_NOTHING = float(np.finfo(np.float32).tiny)
"""Less than any weight that counts."""
_ANEW = 2**40
"""What is added to a draw's number when it is repeated: more than an answer has draws."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Tokens = NDArray[np.int64]
Weights = NDArray[np.float64]


class Sampler:
    """One per sequence: its random numbers depend on nothing but its seed.

    Attributes:
        top: so many candidates are nearly always enough; 0: all logits are needed.
    """

    def __init__(
        self, plan: SamplingPlan, prompt: Iterable[int], constraint: Constraint | None = None
    ) -> None:
        self._constraint = constraint
        self._plan = plan
        self._seen = _Marks(prompt if plan.repetition_penalty != 1.0 else ())
        self._written = _Marks(())
        self._penalises = plan.repetition_penalty != 1.0 or plan.presence_penalty != 0.0
        self._seed = secrets.randbits(63) if plan.seed is None else plan.seed
        self._draws = 0
        self.top = _enough(plan, self._penalises)

    def choose(self, row: Logits | Candidates) -> int:
        """The next token, from logits of shape (vocabulary,), which are as before in the end, or
        from candidates.

        Raises:
            ShammahError: ``generation_failed``: the logits are not numbers.
        """
        if self._constraint is not None:
            wanted = self._plan.top_k if self._plan.temperature > 0 else 1
            row = _restrict(row, self._constraint.allowed(), wanted)
        token = None
        if isinstance(row, Candidates):
            token, whole = self._choose_among(row), row.whole
        else:
            whole = functools.partial(np.asarray, row)
            if self.top and (self._penalises or self._plan.temperature > 0):
                token = self._choose_among(shortlist(row, self.top))
        if token is None:
            token = self._choose_of_all(whole())
        if self._penalises:
            self._seen.add(token)
            self._written.add(token)
        if self._constraint is not None:
            self._constraint.take(token)
        return token

    def _choose_among(self, some: Candidates) -> int | None:
        """The next token, or nothing, if one that is no candidate could change the choice."""
        _check(some.logits)
        order = np.argsort(some.tokens)  # of equal ones the first is taken, as from all
        tokens, scores = some.tokens[order], some.logits[order]
        self._penalise(scores, self._seen.among(tokens), self._written.among(tokens))
        if some.bound > -math.inf and _least_kept(scores, self._plan) < some.bound:
            return None
        return int(tokens[self._draw(scores, tokens)])

    def _choose_of_all(self, logits: Logits) -> int:
        _check(logits)
        if not self._penalises:
            return self._draw(logits)
        seen, written = self._seen.below(len(logits)), self._written.below(len(logits))
        before = logits[seen], logits[written]
        try:  # a copy of all would take longer than the choice
            self._penalise(logits, seen, written)
            return self._draw(logits)
        finally:
            logits[seen], logits[written] = before  # which are the same where both are

    def _draw(self, scores: Logits, tokens: Tokens | None = None) -> int:
        """The place of the next token; ``tokens``: those whose scores they are, if not all."""
        plan = self._plan
        if plan.temperature == 0:
            return int(scores.argmax())
        draw, self._draws = self._draws, self._draws + 1
        few = None
        if len(scores) > _FEW and not 0 < plan.top_k < len(scores):
            weights = _compare(scores, plan.temperature)
            least = plan.min_p * (1 - _ROUNDING) if plan.top_p == 1.0 else 0.0
            possible = weights >= max(least, _NOTHING)
            if np.count_nonzero(possible) > _FEW:
                return _draw_by_blocks(weights, plan, self._seed, draw)
            few = np.flatnonzero(possible)
            scores, tokens = scores[few], few if tokens is None else tokens[few]
        kept, probabilities = candidates(scores, plan)
        noise = gumbel_noise(self._seed, draw, kept if tokens is None else tokens[kept])
        place = kept[_likeliest_sum(probabilities, noise)]
        return int(place if few is None else few[place])

    def _penalise(self, scores: Logits, seen: Tokens, written: Tokens) -> None:
        """Give less to every token that was there before (Keskar et al. 2019, section 4.1), and
        less to every one of the answer."""
        found, penalty = scores[seen], np.float32(self._plan.repetition_penalty)
        scores[seen] = np.where(found < 0, found * penalty, found / penalty)
        scores[written] -= np.float32(self._plan.presence_penalty)


def _restrict(
    row: Logits | Candidates, allowed: NDArray[np.bool_], wanted: int
) -> Logits | Candidates:
    """What of a row may come; if that is little, all of it are candidates. Of candidates there must
    be all that may come, or as many as are ``wanted``."""
    if isinstance(row, Candidates):
        known = allowed.take(row.tokens, mode="clip")
        few, whole = row.tokens[known], row.whole
        bound = row.bound if np.count_nonzero(allowed) > len(few) else -math.inf
        if bound == -math.inf or len(few) >= max(1, wanted):
            return Candidates(few, row.logits[known], bound, lambda: _masked(whole(), allowed))
        row = row.whole()
    tokens = np.flatnonzero(allowed[: len(row)])
    if len(tokens) <= _FEW:
        return Candidates(tokens, row[tokens], -math.inf, lambda: _masked(row, allowed))
    return _masked(row, allowed)


def _masked(logits: Logits, allowed: NDArray[np.bool_]) -> Logits:
    masked = np.full_like(logits, -np.inf)
    count = min(len(logits), len(allowed))
    np.copyto(masked[:count], logits[:count], where=allowed[:count])
    return masked


class _Marks:
    """A set of tokens."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens = np.unique(np.fromiter(tokens, np.int64))
        self._marked = np.zeros(self._tokens.max(initial=0) + 2, np.bool_)
        self._marked[self._tokens] = True

    def add(self, token: int) -> None:
        if token + 2 > len(self._marked):  # the last one never is, and stands for all beyond
            self._marked = np.append(self._marked, np.zeros(token + 2, np.bool_))
        if not self._marked[token]:
            self._marked[token] = True
            self._tokens = np.append(self._tokens, token)

    def among(self, tokens: Tokens) -> Tokens:
        """The places of those that are in it."""
        return np.flatnonzero(self._marked.take(tokens, mode="clip"))

    def below(self, count: int) -> Tokens:
        """Those less than ``count``."""
        return self._tokens[self._tokens < count]


def _enough(plan: SamplingPlan, penalises: bool) -> int:
    """See `Sampler.top`."""
    if plan.repetition_penalty < 1.0 or plan.presence_penalty < 0.0 or plan.top_k > _FEW:
        return 0  # any token may rise
    spare = _SPARE if penalises else _EQUAL
    if plan.temperature == 0:
        return spare
    if plan.top_k:
        return plan.top_k + spare
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


def candidates(scores: Logits, plan: SamplingPlan) -> tuple[Tokens, Weights]:
    """The tokens that may come next and their probabilities, the likeliest first.

    Temperature, then the ``top_k`` likeliest, then the fewest that together have ``top_p``
    (Holtzman et al. 2020), then those that are at least ``min_p`` times as likely as the likeliest
    (Nguyen et al. 2024).
    """
    count = plan.top_k if 0 < plan.top_k < len(scores) else len(scores)
    tokens, weights = _weigh(scores, count, plan.temperature)
    return _nucleus(tokens, weights / weights.sum(), plan)


def _compare(scores: Logits, temperature: float) -> Logits:
    """How likely each token is compared with the likeliest; 0 up to the end of the last block."""
    weights = np.empty(-(-len(scores) // _BLOCK) * _BLOCK, np.float32)
    weights[len(scores) :] = 0.0
    largest, factor = scores.max(), np.float32(1 / temperature)
    for begin in range(0, len(scores), _PART):
        part = weights[begin : min(begin + _PART, len(scores))]
        np.subtract(scores[begin : begin + _PART], largest, out=part)
        part *= factor
        np.exp(part, out=part)
    return weights


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
    least as good as the worst of these, so what is below that is none of them, and no other block
    is looked at. That leaves some hundreds of a hundred thousand.
    """
    blocks, whole = len(scores) // _BLOCK, functools.partial(np.asarray, scores)
    if count >= blocks:
        return Candidates(np.arange(len(scores)), scores, -math.inf, whole)
    lines = scores[: blocks * _BLOCK].reshape(_BLOCK, blocks)
    best = lines.max(0)
    least = np.partition(best, -count)[-count]
    columns = np.flatnonzero(~(best < least))  # what is no number, too
    some = lines[:, columns].ravel()
    places = np.flatnonzero(~(some < least))
    line, column = np.divmod(places, len(columns))
    tokens, rest = line * blocks + columns[column], np.arange(blocks * _BLOCK, len(scores))
    logits = np.concatenate((some[places], scores[rest]))
    return Candidates(np.concatenate((tokens, rest)), logits, float(least), whole)


def _sums(weights: Logits) -> Logits:
    """Of each block: tokens that lie apart, so that this is the sum of few long lines."""
    sums: Logits = weights.reshape(_BLOCK, -1).sum(0)
    return sums


def _sum(weights: Logits) -> float:
    return float(_sums(weights).sum())


def _draw_by_blocks(weights: Logits, plan: SamplingPlan, seed: int, draw: int) -> int:
    """A token as it would be drawn of `candidates`, of which there are many.

    The highest sum of score and noise of some tokens is distributed as that of the logarithm of
    their whole weight and noise. So a block is drawn by its weight, and then a token in it: noise
    for some thousands, not for all (Maddison et al. 2014, section 3). Nothing is sorted: where one
    is drawn that is not of the ``top_p``, neither are those below it, and it is drawn anew without.
    """
    whole = _sum(weights)
    if plan.min_p > 0.0:
        weights = weights * (weights >= plan.min_p)
    while True:
        sums = _sums(weights)
        numbers = np.arange(len(weights), len(weights) + len(sums))  # beyond all tokens'
        block = _likeliest_sum(sums, gumbel_noise(seed, draw, numbers))
        tokens = np.arange(block, len(weights), len(sums))
        token = int(tokens[_likeliest_sum(weights[tokens], gumbel_noise(seed, draw, tokens))])
        least = weights[token]
        if plan.top_p == 1.0:
            return token
        above = weights > least
        below = float(least) * (len(weights) - np.count_nonzero(above))
        if _sum(np.maximum(weights, least)) - below < plan.top_p * whole:
            return token
        weights, draw = weights * above, draw + _ANEW


def _likeliest_sum(weights: Weights | Logits, noise: Weights) -> int:
    with np.errstate(divide="ignore"):  # what may not come has none
        return int((np.log(weights.astype(np.float64)) + noise).argmax())


def gumbel_noise(seed: int, draw: int, tokens: Tokens) -> Weights:
    """Standard Gumbel numbers that hang on seed, draw and token alone.

    From SplitMix64 (Steele et al. 2014) used as a hash, because the token's own number, not
    its place among the candidates, must determine its noise.
    """
    key = np.array([_mix(seed ^ _mix(draw))], np.uint64)  # an array, whose sums may overflow
    state = (tokens.astype(np.uint64) + np.uint64(1)) * _GOLDEN + key
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    uniform = ((state >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(-np.log(uniform))


def _mix(state: int) -> int:
    state = (state + int(_GOLDEN)) % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)
