"""Prompt lookup: what is guessed, and how sure it is."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from workers.inference.scheduling.prompt_lookup import PromptLookup

TOKENS = st.lists(st.integers(0, 3), max_size=60)


def _after(prompt: list[int], answer: list[int]) -> PromptLookup:
    lookup = PromptLookup(prompt)
    for token in answer:
        lookup.add(token)
    return lookup


def test_what_followed_the_last_two_tokens_before_is_guessed() -> None:
    lookup = _after([1, 2, 3, 4, 5, 9], [2, 3])
    assert lookup.guess(2) == [4, 5]
    assert lookup.guess(0) == []


def test_the_latest_place_is_taken() -> None:
    assert _after([1, 2, 7, 1, 2, 8, 5], [1, 2]).guess(1) == [8]


def test_a_place_is_followed_for_as_long_as_it_is_right() -> None:
    """Although the pair (1, 2) was elsewhere since."""
    assert _after([8, 9, 1, 2, 3, 5, 1, 2, 4], [8, 9, 1, 2]).guess(1) == [3]


def test_after_a_wrong_guess_another_place_is_looked_for() -> None:
    lookup = _after([1, 2, 3, 4, 5, 6, 7], [1, 2, 5, 6])
    assert lookup.guess(1) == [7]


def test_nothing_is_guessed_from_what_was_never_there() -> None:
    lookup = _after([1, 2, 3], [4])
    assert lookup.guess(5) == []
    assert lookup.chances(5) == []
    assert PromptLookup([]).guess(3) == []


def test_a_repetition_goes_on_for_as_long_as_is_asked() -> None:
    assert _after([], [5, 6, 7, 5, 6]).guess(8) == [7, 5, 6, 7, 5, 6, 7, 5]


def test_the_more_agrees_the_surer_it_is() -> None:
    text = list(range(40))
    short, long = _after(text, [8, 9]), _after(text, list(range(20)))
    assert short.guess(1) == [10]
    assert long.guess(1) == [20]
    assert short.chances(1) < long.chances(1)


def test_the_prompt_agrees_beyond_the_pair_that_was_looked_up() -> None:
    text = list(range(40))
    assert PromptLookup([*text, *text[:20]]).chances(1) > PromptLookup([*text, 8, 9]).chances(1)


def test_being_wrong_makes_it_less_sure_and_being_right_surer() -> None:
    prompt = [token for n in range(100, 140) for token in (1, 2, n)]
    wrong = _after(prompt, [token for n in range(200, 220) for token in (1, 2, n)] + [1, 2])
    right = _after([1, 2, 3] * 3, [token for _ in range(20) for token in (1, 2, 3)])
    new = _after([1, 2, 3, 9], [1, 2])
    assert wrong.chances(1)[0] < 0.15 < new.chances(1)[0] < 0.9 < right.chances(1)[0]


@given(TOKENS, TOKENS, st.integers(0, 9))
def test_it_guesses_as_if_it_had_read_everything_again(
    prompt: list[int], answer: list[int], most: int
) -> None:
    lookup = _after(prompt, answer)
    tokens = [*prompt, *answer]
    guess, chances = lookup.guess(most), lookup.chances(most)
    assert len(guess) == len(chances) in (0, most)
    assert all(
        0 < after <= before <= 1 for before, after in zip([1.0, *chances], chances, strict=False)
    )
    seen = set(pairwise(tokens[:-1]))
    if most:
        assert bool(guess) == (tuple(tokens[-2:]) in seen)
    text = tokens + guess
    # Somewhere earlier the last two tokens are followed by the whole guess.
    here = text[len(tokens) - 2 :]
    places = range(len(tokens) - 2)
    assert not guess or any(text[at : at + len(here)] == here for at in places)
