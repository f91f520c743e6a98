"""The joint between two backends: nothing twice, nothing missing."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.bus.messages import ChatMessage, Generate
from shammah.settings.model import CloudSettings
from workers.cloud.request import Peer, build_call
from workers.openai.continuation import ANCHOR, Joint, find_anchor, overlap, split_begun

SEA = "The sea is deep and blue. Many animals live in it, and most of them are small."


def join(begun: str, pieces: list[str]) -> str:
    joint = Joint(begun)
    return begun + "".join(joint.add(piece) for piece in pieces) + joint.finish()


def cut(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted({at % (len(text) + 1) for at in cuts}), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(places)]


@given(
    st.integers(1, len(SEA) - 1), st.lists(st.integers(0, 200)), st.sampled_from(["", "\n", " "])
)
def test_whoever_repeats_the_last_words_continues_exactly(
    at: int, cuts: list[int], before: str
) -> None:
    """At every character, in whatever pieces it comes."""
    begun = SEA[:at]
    said = before + find_anchor(begun) + SEA[len(begun.rstrip()) :]
    assert join(begun, cut(said, cuts)) == SEA


@given(st.text(max_size=300), st.text(max_size=50), st.lists(st.integers(0, 400)))
def test_what_repeats_nothing_is_added_whole(begun: str, text: str, cuts: list[int]) -> None:
    said = f"\u2603{text}"  # begins like nothing in the text so far
    if "\u2603" not in begun:
        assert join(begun, cut(said, cuts)) == begun + said


@given(st.text(max_size=200), st.text(max_size=200), st.lists(st.integers(0, 400)))
def test_the_pieces_make_no_difference(begun: str, said: str, cuts: list[int]) -> None:
    assert join(begun, cut(said, cuts)) == join(begun, [said])
    assert join(begun, [said]).startswith(begun)


@pytest.mark.parametrize(
    ("begun", "said", "whole"),
    [
        ("It is Par", "Paris.", "It is Paris."),
        ("It is Par", "is.", "It is Paris."),
        ("the very last", " very last one", "the very last one"),
        ("I know that", " that is it", "I know that that is it"),
        ("f(g(x))", ")", "f(g(x)))"),
        ("Paragraph.\n\n", "Paragraph.\n\nNext", "Paragraph.\n\nNext"),
        ("is ", "is Paris", "is Paris"),
        ("A", "A cat", "A cat"),
        ("", "Hello", "Hello"),
    ],
)
def test_joints(begun: str, said: str, whole: str) -> None:
    assert join(begun, [said]) == whole


def test_an_overlap_begins_with_a_word() -> None:
    assert overlap("the great sea", "reat sea is", glued=True) == 0
    assert overlap("the great sea", "great sea is", glued=False) == 9


def test_the_anchor_is_short_and_begins_with_a_word() -> None:
    assert find_anchor(SEA) in SEA
    assert len(find_anchor("x" * 500)) <= ANCHOR
    assert f" {find_anchor(SEA)}" in SEA


def test_a_conversation_for_the_cloud_never_ends_with_the_assistant() -> None:
    question, begun = ChatMessage("user", "The sea?"), ChatMessage("assistant", SEA[:40])
    assert split_begun((question, begun))[1] == begun.content
    call = build_call(Generate("r", (question, begun)), CloudSettings(), Peer.of(""))
    assert [turn["role"] for turn in call.turns] == ["user", "assistant", "user"]
    assert f"<last_words>{find_anchor(begun.content)}</last_words>" in str(call.turns[-1])


def test_the_beginning_and_its_question_are_never_left_out() -> None:
    earlier = (ChatMessage("user", "x" * 9_000_000), ChatMessage("assistant", "y"))
    question, begun = ChatMessage("user", "z" * 9_000_000), ChatMessage("assistant", SEA)
    request = Generate("r", (*earlier, question, begun))
    call = build_call(request, CloudSettings(), Peer.of(""))
    assert [str(turn["content"])[:1] for turn in call.turns] == ["z", "T", "Y"]
