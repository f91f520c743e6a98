"""Which guesses are computed along with the tokens that must be. Pure but for the clock.

Speculative decoding (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192): a pass that
computes a sequence's last token and some guesses of the next ones gives every token up to the
first wrong guess. It pays where a pass of several rows costs less than as many passes, because
the weights are read once; how much less is learnt from the passes themselves.

The answer does not change: a guess counts only if it is what the sampler chooses. That holds
for a runner that gives a row the same bits in any company (`RunnerLimits.exact`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from workers.inference.scheduling.prompt_lookup import PromptLookup
from workers.inference.scheduling.scheduler import Sequence

MARGIN = 1.05
"""By how much guesses must be expected to make a step faster: the costs are never quite known."""

_HOPED_PER_ROW = 0.12
"""What another row is taken to cost, of a pass of one, until it was seen: little, so that it
will be tried."""
_REMEMBERED = 256
"""Passes after which a cost is no longer known: conversations grow, and machines get busy."""
_RISE = 0.1
"""Of the way by which a cost follows a slower pass; a faster one counts at once, since other
programs can only make a pass slower."""


class PassCosts:
    """What a pass of some rows costs, relative to one of a single row."""

    def __init__(self) -> None:
        self._single = 0.0  # seconds
        self._known: dict[int, tuple[float, int]] = {}  # rows: cost, and the pass that showed it
        self._passes = 0

    def learn(self, rows: int, seconds: float) -> None:
        """A pass of ``rows`` rows has taken so long."""
        self._passes += 1
        oldest = self._passes - _REMEMBERED
        self._known = {some: one for some, one in self._known.items() if one[1] >= oldest}
        if rows == 1:
            self._single = _follow(self._single, seconds)
        elif self._single:
            known, _ = self._known.get(rows, (0.0, 0))
            self._known[rows] = (_follow(known, seconds / self._single), self._passes)

    def of(self, rows: int) -> float:
        """At least that of fewer rows, and at most that of more."""
        known = {some: cost for some, (cost, _) in self._known.items()}
        hoped = known.get(rows, 1 + _HOPED_PER_ROW * (rows - 1))
        least = max((cost for some, cost in known.items() if some <= rows), default=1.0)
        most = min((cost for some, cost in known.items() if some >= rows), default=hoped)
        return max(min(hoped, most), least, 1.0)


def _follow(before: float, now: float) -> float:
    return now if not before or now < before else before + _RISE * (now - before)


def share_rows(chances: list[list[float]], rows: int, cost: Callable[[int], float]) -> list[int]:
    """How many guesses of each sequence to compute, for the most tokens in a time.

    Args:
        chances: for each sequence that gets a token anyway, those of its guesses, falling.
        rows: of a pass, at most.
        cost: of a pass of so many rows.
    """
    counts, best = [0] * len(chances), [0] * len(chances)
    expected = float(len(chances))
    rate = MARGIN * expected / cost(len(chances))
    offers = sorted(
        (-chance, place, number)
        for number, some in enumerate(chances)
        for place, chance in enumerate(some)
    )
    for taken, (chance, _, number) in enumerate(offers[: rows - len(chances)], len(chances) + 1):
        counts[number] += 1
        expected -= chance
        if expected / cost(taken) > rate:
            rate, best = expected / cost(taken), list(counts)
    return best


class Speculation:
    """The guesses for the sequences of one engine.

    Args:
        rows: of a pass, at most; 0: nothing is ever guessed.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._lookups: dict[str, PromptLookup] = {}
        self.costs = PassCosts()

    def chosen(self, sequence: Sequence, tokens: Iterable[int]) -> None:
        """The sequence has gone on with ``tokens``."""
        if not self._rows:
            return
        name = sequence.request.request_id
        if name not in self._lookups:
            self._lookups[name] = PromptLookup(sequence.request.prompt)
        for token in tokens:
            self._lookups[name].add(token)

    def forget(self, request_id: str) -> None:
        """The sequence has ended."""
        self._lookups.pop(request_id, None)

    def guesses(self, sequences: tuple[Sequence, ...], others: int = 0) -> list[list[int]]:
        """What to compute of each sequence after its last token, in a pass with ``others``."""
        free = self._rows - others - len(sequences)
        if free <= 0:
            return [[] for _ in sequences]
        lookups = [self._lookups[one.request.request_id] for one in sequences]
        # The pass itself gives one token more than it had right guesses.
        mosts = [min(free, one.request.max_new_tokens - one.generated - 1) for one in sequences]
        chances = [lookup.chances(most) for lookup, most in zip(lookups, mosts, strict=True)]
        counts = share_rows(chances, self._rows - others, self.costs.of)
        return [lookup.guess(count) for lookup, count in zip(lookups, counts, strict=True)]
