"""Which names a training set has, where they turn up, and its questions with other names. Pure."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable

from shammah.learning.examples import Example

OTHERS = (
    "Brannock",
    "Kellerby",
    "Ostravin",
    "Linfell",
    "Tamsor",
    "Quillan",
    "Merrowin",
    "Dalbrook",
)
"""Names that stand for nothing."""

MOST_RENAMED = 24
"""Questions with another name."""

_WORD = re.compile(r"\w+")


def names_in(examples: Iterable[Example], is_word: Callable[[str], bool]) -> frozenset[str]:
    """What the examples name, as `words_in` finds it: words with a capital letter or of a script
    that has none, and numbers of three digits or more.

    Args:
        is_word: whether a word in small letters is an ordinary one.
    """
    found: set[str] = set()
    for example in examples:
        for text in (example.prompt[-1][1], example.response):
            for word in _WORD.findall(text):
                if word.isdigit():
                    found |= {word} if len(word) >= 3 else set()
                elif word.lower() == word.upper():
                    found |= words_in(word)
                elif word != word.lower() and len(word) > 1 and not is_word(word.lower()):
                    found.add(word.casefold())
    return frozenset(found)


def words_in(text: str) -> set[str]:
    """The words of a text without regard to case; of a script that does not know it, in which
    words are often not set apart, all pairs of neighbouring characters."""
    found: set[str] = set()
    for word in _WORD.findall(text):
        if word.isdigit() or word.lower() != word.upper():
            found.add(word.casefold())
        else:
            found |= {word[at : at + 2] for at in range(max(1, len(word) - 1))}
    return found


def rename(examples: Iterable[Example], names: frozenset[str], seed: int) -> tuple[str, ...]:
    """Questions of the examples that hold a name, with another one in its place: what is true of
    Orrin is not true of Brannock."""
    chosen = random.Random(seed)
    found: dict[str, None] = {}
    for example in examples:
        question = example.prompt[-1][1]
        other = chosen.choice(OTHERS)
        renamed = _WORD.sub(
            lambda word, other=other: other if word[0].casefold() in names else word[0],  # type: ignore[misc]
            question,
        )
        if renamed != question:
            found[renamed] = None
    kept = list(found)
    return tuple(chosen.sample(kept, min(MOST_RENAMED, len(kept))))
