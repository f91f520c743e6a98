"""Guesses the next tokens of a sequence from where its last two were before. Pure.

Prompt lookup decoding (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding):
answers quote their questions, and edited code is mostly the old code. The guess follows an
earlier place for as long as it is right there; how far the tokens before both places agree says
how likely it is to be right again, and every token that comes is a trial of it, whether or not
the guess was computed.

Longer n-grams in the index change nothing (3, or 4 and 3 and 2: the same rate of tokens within
a hundredth on quoting, editing and plain answers), since an agreement that goes on is never
looked up again, and a short one is not believed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

_LENGTHS = (2, 3, 4, 6, 9, 16)
_CHANCES = (0.3, 0.45, 0.65, 0.8, 0.9, 0.97)
"""That a guess is right after so many tokens agree, as measured on answers of several kinds."""

_WEIGHT = 8.0
"""Trials of this sequence that weigh as much as those numbers."""


class PromptLookup:
    """One per sequence.

    Args:
        tokens: the prompt.
    """

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._follows: dict[tuple[int, int], int] = {}  # two tokens: the place after the last such
        self._place = 0  # of the guess; the tokens before it and the last ones agree
        self._agreed = 0  # so many of them; 0: there is no guess
        self._trials = [_WEIGHT] * len(_LENGTHS)
        self._successes = [_WEIGHT * chance for chance in _CHANCES]
        for token in tokens:
            self._look_up(token)

    def add(self, token: int) -> None:
        """The sequence has gone on with ``token``."""
        right = bool(self._agreed) and self._tokens[self._place] == token
        if self._agreed:
            kind = _kind(self._agreed)
            self._trials[kind] += 1
            self._successes[kind] += right
        place, agreed = self._place + 1, self._agreed + 1
        self._look_up(token)
        if right:
            self._place, self._agreed = place, agreed

    def guess(self, most: int) -> list[int]:
        """``most`` tokens that may come next, or none."""
        if not self._agreed:
            return []
        found = self._tokens[self._place : self._place + most]
        # At the end of what there is, what repeats itself goes on repeating itself.
        return [found[n % len(found)] for n in range(most)]

    def chances(self, most: int) -> list[float]:
        """For each token of `guess`: how likely it is that all up to it are right."""
        chances, chance = [], 1.0
        for after in range(most if self._agreed else 0):
            kind = _kind(self._agreed + after)
            chance *= self._successes[kind] / self._trials[kind]
            chances.append(chance)
        return chances

    def _look_up(self, token: int) -> None:
        """Take up ``token``, and look where it and the one before it were last."""
        tokens, self._agreed = self._tokens, 0
        tokens.append(token)
        end = len(tokens)
        if end < 2:
            return
        pair = (tokens[-2], token)
        place = self._follows.get(pair)
        self._follows[pair] = end
        if place is not None:
            self._place, self._agreed = place, 2
            while (
                self._agreed < min(place, _LENGTHS[-1])
                and tokens[place - 1 - self._agreed] == tokens[end - 1 - self._agreed]
            ):
                self._agreed += 1


def _kind(agreed: int) -> int:
    return bisect_right(_LENGTHS, agreed) - 1
