"""A model's thinking and its answer, however the text is cut into pieces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.inference.text.reasoning import ReasoningSplitter

CASES = [
    ("Hello", False, "", "Hello"),
    ("", False, "", ""),
    ("<think>\nHm.\n</think>\n\nYes.\n", False, "\nHm.\n", "Yes.\n"),
    ("\n <think>a</think>b", False, "a", "b"),
    ("still thinking", True, "still thinking", ""),
    ("a</think>\n\nb </think> <think>", True, "a", "b </think> <think>"),
    ("a < b and <thin air", False, "", "a < b and <thin air"),
    ("<thing>", False, "", "<thing>"),
    ("<think", False, "", "<think"),
    ("<think>a</thin", False, "a</thin", ""),
    ("<think></think>", False, "", ""),
    ("  x", False, "", "  x"),
]


@pytest.mark.parametrize(("text", "begun", "reasoning", "answer"), CASES)
@given(cuts=st.lists(st.integers(0, 40)))
def test_they_are_told_apart(
    text: str, begun: bool, reasoning: str, answer: str, cuts: list[int]
) -> None:
    splitter = ReasoningSplitter(begun=begun)
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    pieces = [splitter.add(text[a:b]) for a, b in itertools.pairwise(places)]
    pieces.append(splitter.finish())
    assert "".join(piece[0] for piece in pieces) == reasoning
    assert "".join(piece[1] for piece in pieces) == answer


def test_an_answer_is_not_held_back() -> None:
    splitter = ReasoningSplitter(begun=False)
    assert splitter.add("Par") == ("", "Par")
    assert splitter.add("is <") == ("", "is <")
