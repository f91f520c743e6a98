"""The categories, on sentences that a person has sorted (tests/data/categories.tsv)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shammah.router.question import Category, categorize
from tests.data import DATA

FILE = DATA / "categories.tsv"
SENTENCES = [
    tuple(line.split("\t")) for line in FILE.read_text("utf-8").splitlines() if line[0] != "#"
]


def original(question: str) -> Category:
    """The original's rules, on substrings, to compare with."""
    lower = question.lower()
    words = lower.split()
    two = " ".join(words[:2])
    if any(one in question for one in ("```", "fn ", "def ")):
        return Category.CODE
    if any(one in lower for one in ("error", "fix", "bug", "broken", "doesn't work")):
        return Category.DEBUGGING
    if len(words) >= 2 and two.startswith(("what is", "who is", "what are")):
        return Category.DEFINITION
    if len(words) >= 2 and two.startswith(("how to", "how do", "how can")):
        return Category.HOW_TO
    if len(words) <= 3 and (
        lower.startswith(("hi", "hello", "hey")) or lower in ("good morning", "good afternoon")
    ):
        return Category.GREETING
    if "explain" in lower or "describe" in lower or lower.startswith("why"):
        return Category.EXPLANATION
    if any(one in lower for one in (" vs ", " versus ", "difference between", "compare")):
        return Category.COMPARISON
    if any(one in lower for one in ("should i", "is it better", "recommend")):
        return Category.OPINION
    return Category.OTHER


def accuracy(split: str, sort: Callable[[str], Category], trap: str = "") -> float:
    asked = [one for one in SENTENCES if one[0] == split and (not trap or one[2] == trap)]
    right = sum(sort(one[3].replace("\\n", "\n")) == one[1] for one in asked)
    print(f"{split} {trap}: {right} of {len(asked)}")
    return right / len(asked)


def test_the_set_is_large_enough_and_has_every_category() -> None:
    assert len(SENTENCES) >= 150
    assert {one[1] for one in SENTENCES} == set(Category)


def test_accuracy() -> None:
    assert accuracy("tuning", categorize) >= 0.99
    assert accuracy("held-out", categorize) >= 0.84
    assert accuracy("held-out", categorize) > accuracy("held-out", original) + 0.1


def test_words_and_not_substrings() -> None:
    assert accuracy("tuning", categorize, "trap") == 1.0
    assert accuracy("tuning", original, "trap") == 0.0


@pytest.mark.parametrize(
    ("question", "category"),
    [
        ("Fix the def f(x): thing, what is wrong?", Category.CODE),
        ("It doesn't work. What is a fix?", Category.DEBUGGING),
        ("What is a described example?", Category.DEFINITION),
        ("how do I explain this to my boss", Category.HOW_TO),
        ("hello why", Category.GREETING),
        ("explain cats vs dogs", Category.EXPLANATION),
        ("cats vs dogs, which do you recommend", Category.COMPARISON),
    ],
)
def test_where_two_fit_the_first_of_the_order_wins(question: str, category: Category) -> None:
    assert categorize(question) is category


def test_nothing_is_too_strange() -> None:
    for text in ("", " ", "\0", "?" * 10_000, "a" * 100_000, "```"):
        assert categorize(text) in Category


def test_the_names_are_the_originals() -> None:
    assert [one.value for one in Category] == [
        "greeting", "definition", "how_to", "explanation", "code", "debugging", "comparison",
        "opinion", "other",
    ]  # fmt: skip
