"""Lines are broken between words, and nothing of them is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shammah.folding import cells, cut, fold
from shammah.repl.help import describe_help

SENTENCE = "Set ANTHROPIC_API_KEY, or cloud.api_key in config.toml."


def test_a_line_that_fits_is_as_it_was() -> None:
    assert fold(SENTENCE, len(SENTENCE)) == SENTENCE


def test_lines_are_broken_between_words_and_indented_as_they_begin() -> None:
    assert fold(f"  {SENTENCE}", 31) == (
        "  Set ANTHROPIC_API_KEY, or\n  cloud.api_key in config.toml."
    )
    assert fold(SENTENCE, 30, " " * 4) == (
        "Set ANTHROPIC_API_KEY, or\n    cloud.api_key in\n    config.toml."
    )


def test_a_word_that_is_too_long_stays_whole() -> None:
    assert fold("see /a/very/long/path/to/something now", 10).split("\n") == [
        "see",
        "/a/very/long/path/to/something",
        "now",
    ]


def test_wide_characters_take_two_cells_and_styles_none() -> None:
    assert cells("\x1b[2m守望者\x1b[0m a") == 8
    assert fold("守望 守望", 8) == "守望\n守望"


@given(st.text(st.characters(exclude_characters="\n")), st.integers(1, 60))
def test_no_word_is_lost(text: str, columns: int) -> None:
    assert [word for word in fold(text, columns).replace("\n", " ").split(" ") if word] == [
        word for word in text.split(" ") if word
    ]


def test_a_title_is_cut_to_the_line() -> None:
    assert cut("What are tides?", 15) == "What are tides?"
    assert cut("What are tides?", 9) == "What are…"
    assert cells(cut("守望者守望者", 5)) <= 5


def test_help_goes_on_below_its_words() -> None:
    said = {"redo": "asks the last question again: /redo, /redo local, /redo cloud"}
    lines = list(describe_help(said, 70))[1].split("\n")
    assert len(lines) == 2
    assert lines[1].startswith(" " * 16 + "/redo")
