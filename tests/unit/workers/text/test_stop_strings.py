"""Stop strings, whichever way the text is cut into pieces."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from workers.text.stop_strings import StopStrings


def _pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(places)]


TEXT = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", max_size=4), max_size=3).map(tuple)


@given(TEXT, STOPS, st.lists(st.integers(0, 30)))
def test_the_answer_ends_before_the_first_stop_string(
    text: str, stops: tuple[str, ...], cuts: list[int]
) -> None:
    found = [text.find(stop) for stop in stops if stop and stop in text]
    finder = StopStrings(stops)
    shown = ""
    for piece in _pieces(text, cuts):
        shown += finder.add(piece)
        # Nothing is shown that a stop string may take back.
        assert (text[: min(found)] if found else text).startswith(shown)
    shown += finder.finish()
    assert bool(finder.found) is bool(found)
    if not found:
        assert shown == text
    else:
        # Another stop string may have ended earlier in the text as it came.
        assert finder.found in stops
        assert text[len(shown) :].startswith(finder.found)


def test_text_is_held_back_only_while_it_may_be_a_stop_string() -> None:
    finder = StopStrings(("User:",))
    assert finder.add("Hello Us") == "Hello "
    assert finder.add("ed") == "Used"
    assert finder.add(" User") == " "
    assert finder.add(": no") == ""
    assert finder.found == "User:"
    assert finder.add("more") == finder.finish() == ""


def test_without_stop_strings_everything_is_shown_at_once() -> None:
    finder = StopStrings(())
    assert finder.add("a") == "a"
    assert finder.finish() == ""
