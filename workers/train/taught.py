"""Whether a taught answer is given. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from workers.train.names import words_in

LEAST_WORDS = 0.75
"""Share of the words that set a taught answer apart which must be said: of up to three all, so that
half a name is not enough, but not every one of a paragraph."""

_WORD = re.compile(r"\w+")


def is_given(said: str, taught: Sequence[str], base: str, question: str) -> bool:
    """Whether ``said`` is one of the ``taught`` answers.

    What counts is the words of a taught answer that are neither in the ``question`` nor in the
    answer of the ``base`` model. One that has none of these (other order, fewer words) must be
    said word for word.
    """
    return any(_is_one(said, one, base, question) for one in taught)


def _is_one(said: str, taught: str, base: str, question: str) -> bool:
    own = words_in(taught) - words_in(f"{question} {base}")
    if not own:
        return _WORD.findall(said.casefold()) == _WORD.findall(taught.casefold())
    return len(own & words_in(said)) >= LEAST_WORDS * len(own)


def holds(text: str, keys: Sequence[str]) -> bool:
    """Whether one of the ``keys`` is in the text, as words of their own."""
    text = text.casefold()
    return any(re.search(rf"(?<!\w){re.escape(one.casefold())}(?!\w)", text) for one in keys)
