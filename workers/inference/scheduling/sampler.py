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
"""Tokens among which nearly always all of ``top_p`` is."""
_SPARE = 64
"""Candidates beyond those that are to be kept, for penalties to choose from."""
_EQUAL = 16
"""The same without penalties: several may have the same logit."""
_ROUNDING = 1e-5
"""More than what float32 gets wrong of an exponential."""
_AT_ONCE = 8
"""Lines of blocks whose hashes are computed at once: what is small stays in a cache, and in memory
that need not be asked of the system each time."""
_PART = 16_384
"""Scores whose exponentials are computed at once, for the same reason."""
_MOST = 2.0**64 - 2.0**13
"""Less than 2**64, by more than what float64 gets wrong of it."""
_CERTAIN = np.uint64(2**64 - 2**33)
"""The bits of a hash that its last step does not change."""
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
        known = np.union1d(seen, written)
        found = logits[known]
        try:  # a copy of all would take longer than the choice
            self._penalise(logits, seen, written)
            return self._draw(logits)
        finally:
            logits[known] = found

    def _draw(self, scores: Logits, tokens: Tokens | None = None) -> int:
        """The place of the next token; ``tokens``: those whose scores they are, if not all."""
        plan = self._plan
        if plan.temperature == 0:
            return int(scores.argmax())
        draw, self._draws = self._draws, self._draws + 1
        found = None
        if plan.top_k or plan.min_p or len(scores) <= _FEW:
            found = candidates(scores, plan)
        elif plan.top_p < 1.0:
            found = _small_nucleus(scores, plan)
        if found is None:
            return _draw_from_all(scores, plan, self._seed, draw)
        kept, probabilities = found
        noise = gumbel_noise(self._seed, draw, kept if tokens is None else tokens[kept])
        with np.errstate(divide="ignore"):  # what may not come has none
            return int(kept[np.argmax(np.log(probabilities) + noise)])

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
        numbers = np.fromiter(tokens, np.int64)
        self._marked = np.zeros(numbers.max(initial=0) + 2, np.bool_)
        self._marked[numbers] = True

    def add(self, token: int) -> None:
        if token + 2 > len(self._marked):  # the last one never is, and stands for all beyond
            self._marked = np.pad(self._marked, (0, token + 2))
        self._marked[token] = True

    def among(self, tokens: Tokens) -> Tokens:
        """The places of those that are in it."""
        return np.flatnonzero(self._marked.take(tokens, mode="clip"))

    def below(self, count: int) -> Tokens:
        """Those less than ``count``."""
        return np.flatnonzero(self._marked[:count])


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
    if 0 < plan.top_k < len(scores):
        tokens, weights = _weigh(scores, plan.top_k, plan.temperature)
        return _nucleus(tokens, weights / weights.sum(), plan)
    if plan.top_p < 1.0 and (found := _small_nucleus(scores, plan)):
        return found
    tokens, weights = _weigh(scores, len(scores), plan.temperature)
    return _nucleus(tokens, weights / weights.sum(), plan)


def _small_nucleus(scores: Logits, plan: SamplingPlan) -> tuple[Tokens, Weights] | None:
    """`candidates` without ``top_k``, if some of all tokens are enough."""
    whole, _ = _masses(scores, plan.temperature)
    if plan.top_p * whole > _FEW or len(scores) <= _FEW:  # of which each weighs 1 at most
        return None
    tokens, weights = _weigh(scores, _FEW, plan.temperature)
    if weights.sum() > (plan.top_p + _ROUNDING) * whole:
        return _nucleus(tokens, weights / whole, plan)
    return None


def _masses(scores: Logits, temperature: float, least: float = math.inf) -> tuple[float, float]:
    """How likely all tokens are together, and those with more than ``least``, compared with the
    likeliest."""
    largest, factor, whole, above = scores.max(), np.float32(1 / temperature), 0.0, 0.0
    for begin in range(0, len(scores), _PART):
        part = scores[begin : begin + _PART]
        weights = np.exp((part - largest) * factor)
        whole += float(weights.sum())
        if least < math.inf:
            above += float((weights * (part > least)).sum())
    return whole, above


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


def _draw_from_all(scores: Logits, plan: SamplingPlan, seed: int, draw: int) -> int:
    """The token with the highest sum of score and noise of those that together have ``top_p``.

    Nothing is sorted: one that is not among those has only worse ones below it.
    """
    least = -np.float32(np.inf)
    while True:
        token = _likeliest_sum(scores, plan.temperature, _key(seed, draw), least)
        if plan.top_p == 1.0:
            return token
        whole, above = _masses(scores, plan.temperature, scores[token])
        if above < plan.top_p * whole:
            return token
        least = np.nextafter(scores[token], np.float32(np.inf))


def _likeliest_sum(
    scores: Logits, temperature: float, key: NDArray[np.uint64], least: np.float32
) -> int:
    """The token with the highest sum of score and noise among those with a score of ``least``;
    the sum is computed for those alone that can have it.

    A token overtakes the best one b of some only if -log u < exp(s - b), for its uniform number u,
    and 1 - u is less than -log u. That is asked of all tokens with the best score of their block,
    and of their bits as they are: no logarithm, and for each block one exponential.
    """
    blocks = len(scores) // _BLOCK

    def sums(tokens: Tokens) -> Weights:
        found = scores[tokens].astype(np.float64) / temperature + _noise(key, tokens)
        return np.where(scores[tokens] >= least, found, -np.inf)

    best = sums(shortlist(scores, _SPARE).tokens).max()
    highest = scores[: blocks * _BLOCK].reshape(_BLOCK, blocks).max(0).astype(np.float64)
    ahead = np.exp(np.minimum(highest / temperature - best, 0.0)) * (1 + _ROUNDING)
    bounds = (np.maximum(1 - ahead, 0.0) * _MOST).astype(np.uint64) & _CERTAIN
    start, able = key, [np.arange(blocks * _BLOCK, len(scores))]
    steps = _golden_steps(_AT_ONCE * blocks)
    for begin in range(0, blocks * _BLOCK, len(steps)):
        bits = _mix_roughly(steps + start)
        able.append(begin + np.flatnonzero(bits.reshape(_AT_ONCE, blocks) >= bounds))
        start = start + steps[-1:]
    tokens = np.concatenate(able)
    return int(tokens[sums(tokens).argmax()])


def gumbel_noise(seed: int, draw: int, tokens: Tokens) -> Weights:
    """Standard Gumbel numbers that hang on seed, draw and token alone.

    From SplitMix64 (Steele et al. 2014) used as a hash, because the token's own number, not
    its place among the candidates, must determine its noise.
    """
    return _noise(_key(seed, draw), tokens)


def _noise(key: NDArray[np.uint64], tokens: Tokens) -> Weights:
    bits = _mix_roughly((tokens.astype(np.uint64) + np.uint64(1)) * _GOLDEN + key)
    bits ^= bits >> np.uint64(31)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(-np.log(uniform))


def _key(seed: int, draw: int) -> NDArray[np.uint64]:
    """What the hashes of a draw have in common; an array, whose sums may overflow."""
    return np.array([_mix(seed ^ _mix(draw))], np.uint64)


def _mix(state: int) -> int:
    state = (state + int(_GOLDEN)) % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


@functools.cache
def _golden_steps(count: int) -> NDArray[np.uint64]:
    """What the hashes of so many successive tokens begin with."""
    return np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN


def _mix_roughly(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """All of the hash but its last step, which leaves the upper 31 bits as they are; ``state`` is
    changed."""
    shifted = state >> np.uint64(30)
    state ^= shifted
    state *= np.uint64(0xBF58476D1CE4E5B9)
    state ^= np.right_shift(state, np.uint64(27), out=shifted)
    state *= np.uint64(0x94D049BB133111EB)
    return state
