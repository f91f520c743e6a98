"""What the text of an answer says about how good it is. Pure; no text is kept.

`judge` sees only what is plainly wrong; what the person does outweighs it. `passes` is the
original's heuristic (its ``ThresholdValidator``), which the classic policy counts by.
"""

from __future__ import annotations

import re

from shammah.router.statistics import Label

_REFUSAL = (
    r"\W*(?:i'?m sorry|sorry|i apologi[sz]e)?[,.]?\s*(?:but )?(?:as an ai[^.]*, )?"
    r"i(?: can'?t| cannot|'m unable to| am unable to|'m not able to| am not able to"
    r"| do not know how to| don'?t know how to) "
    r"(?:help|assist|answer|provide|do|fulfil|comply|create|write|generate|discuss|access|see)"
)
_LOOP_WORDS, _LOOP_SHARE = 60, 0.4


def judge(answer: str, finish_reason: str) -> Label:
    """Empty, refused or going round in circles is bad; everything else passes for good."""
    if (
        not answer.strip()
        or finish_reason == "refusal"
        or re.match(_REFUSAL, answer, re.IGNORECASE)
    ):
        return Label.TEXT_BAD
    return Label.TEXT_BAD if loops(answer) else Label.TEXT_GOOD


def loops(answer: str) -> bool:
    """Whether it says the same again and again."""
    words = answer.split()
    if len(words) < _LOOP_WORDS:
        return False
    threes = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(threes)) < _LOOP_SHARE * len(threes)


def passes(question: str, answer: str) -> bool:
    """The original's verdict: a score of at least 0.7 (SEMANTICS 1.8).

    Its numbers, but for two defects: an answer that ends with a closing fence is complete, and
    the first ten answers are judged like any other. The weights that it learnt after 50 answers
    are left out: they were learnt from its own verdicts.
    """
    return score(question, answer) >= 0.7


def score(question: str, answer: str) -> float:
    """0 to 1: 0.5, and something more or less for each sign."""
    text = answer.strip()
    words = text.lower().split()
    found = 0.5
    found -= 0.5 * (not text)
    found -= 0.3 * (len(text) < 20)
    found -= 0.1 * (len(text) > 5000)
    threes = list(zip(words, words[1:], words[2:], strict=False))
    found -= 0.4 * (len(threes) - len(set(threes)) >= 2 and _most(threes) >= 3)
    found -= 0.3 * (not text.endswith((".", "!", "?", ")", '"', "'", "```")))
    found += 0.1 * ("```" in text)
    sentences = [one for one in re.split(r"[.!?]+", text) if one.strip()]
    found += 0.2 * ("\n\n" in text or len(sentences) >= 2)
    asked = {word for word in re.findall(r"\w+", question.lower()) if len(word) > 3}
    met = sum(word in text.lower() for word in asked)
    found += 0.3 * (bool(asked) and met >= 0.3 * len(asked))
    return min(1.0, max(0.0, found))


def _most(some: list[tuple[str, str, str]]) -> int:
    counts: dict[tuple[str, str, str], int] = {}
    for one in some:
        counts[one] = counts.get(one, 0) + 1
    return max(counts.values(), default=0)
