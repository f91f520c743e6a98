"""Lines are broken between words, and nothing of them is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.repl.commands.table import describe_help
from shammah.terminal.painter import LaidOutAnswer, Plain
from shammah.terminal.text import cells, cut, fold
from tests.fakes.screen import Picture

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
    said = {"/redo": "Ask the last question again: /redo, /redo local, /redo cloud"}
    lines = list(describe_help("Answers", said, 70))[1].split("\n")
    assert len(lines) == 2
    assert lines[1].startswith(" " * 16 + "/redo")


class TestRunningText:
    """What a terminal shows of text that comes in pieces."""

    def shown(self, text: str, columns: int, piece: int) -> list[str]:
        picture = Picture(columns, 50)
        answer = LaidOutAnswer(Plain(), picture.write, picture.size, lambda: 0.0)
        for begin in range(0, len(text), piece):
            answer.feed(text[begin : begin + piece])
        answer.finish()
        return picture.text.split("\n")

    @pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
    def test_is_broken_between_words_however_it_comes(self, piece: int) -> None:
        text = "The railway was repurposed into a functional garden.\n\nIt is open."
        assert self.shown(text, 30, piece) == [
            "The railway was repurposed",
            "into a functional garden.",
            "",
            "It is open.",
        ]

    @pytest.mark.parametrize("piece", [1, 4, 1000])
    def test_keeps_code_and_tables_as_they_are(self, piece: int) -> None:
        code = "x = some_function(argument)"
        text = f"a b c d e f g h\n```py\n{code}\n```\na b c d e f g h\n    {code}\n| {code} |"
        assert self.shown(text, 12, piece) == [
            *("a b c d e f", "g h", "```py", code[:12], code[12:24], code[24:], "```"),
            *("a b c d e f", "g h", f"    {code}"[:12], code[8:20], code[20:]),
            *(f"| {code} |"[:12], f"| {code} |"[12:24], f"| {code} |"[24:]),
        ]

    @pytest.mark.parametrize("piece", [1, 1000])
    def test_of_wide_characters_is_broken_anywhere(self, piece: int) -> None:
        shown = self.shown("看天气预报今天去公园", 11, piece)
        assert "".join(line.replace(" ", "") for line in shown) == "看天气预报今天去公园"
        assert all(cells(line.replace(" ", "")) <= 10 for line in shown)

    @given(
        st.text("ab cdé-\n", max_size=200),
        st.integers(12, 40),
        st.integers(1, 9),
    )
    def test_loses_no_word(self, text: str, columns: int, piece: int) -> None:
        shown = " ".join(self.shown(text, columns, piece)).split()
        if max(map(len, text.split()), default=0) < columns and text.count("\n") < 20:
            assert shown == text.split()
