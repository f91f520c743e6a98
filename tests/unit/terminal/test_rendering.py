"""Answers on their way to the screen: what a terminal shows of them, piece by piece."""

from __future__ import annotations

import io
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shammah.terminal.markdown import Markdown
from shammah.terminal.painter import LONG, LaidOutAnswer, RawAnswer
from tests.fakes.screen import Picture

MARKDOWN = Markdown()

TEXT = """# Tides

The **moon** pulls at the *water*; see `gravity` and [more](https://example.org/tides), which is
a line that is long enough to be wrapped more than once on any terminal that we look at here.

Three reasons:
- one
- two with **bold text**
  - deeper

1. First:
   ```bash
   pip install tides && echo "a very long line of code that is never wrapped by us, whatever"
   ```
2. Second

| body | pull |
|------|-----:|
| moon | 2.2 |
| sun | 1 |

```python
def pull(mass):
    return mass ** 2  # not a law
```

> Neither a borrower
> nor a lender be.

潮汐是由月球和太阳的引力引起的海水周期性涨落现象,而且每天发生两次。
2 ** 3 is 8, a_b_c and <b>html</b> stay.
"""


def no_time() -> float:
    """A clock by which every repaint is free, so that none is put off."""
    return 0.0


def shown(pieces: list[str], columns: int = 60, rows: int = 60) -> Picture:
    picture = Picture(columns, rows)
    answer = LaidOutAnswer(MARKDOWN, picture.write, picture.size, no_time)
    for piece in pieces:
        answer.feed(piece)
    answer.finish()
    return picture


def pieces_of(text: str, seed: int, longest: int = 8) -> list[str]:
    dice = random.Random(seed)
    pieces = []
    while text:
        size = dice.randint(1, longest)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def test_a_text_is_laid_out() -> None:
    lines = shown([TEXT]).text.split("\n")
    assert lines[0] == "Tides"
    assert "• two with bold text" in lines
    assert "  • deeper" in lines
    assert "1. First:" in lines
    assert lines[lines.index("body  pull") + 2] == "moon   2.2"
    assert "│ Neither a borrower" in lines
    assert "2 ** 3 is 8, a_b_c and <b>html</b> stay." in lines
    assert all(len(line) < 60 for line in lines if "pip" not in line)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("columns", [20, 40, 200])
def test_in_pieces_it_looks_as_it_does_in_one(seed: int, columns: int) -> None:
    whole = shown([TEXT], columns, 80)
    assert shown(pieces_of(TEXT, seed), columns, 80).text == whole.text


def test_styles_are_the_same_in_pieces() -> None:
    def styles(picture: Picture) -> list[tuple[str, bool, str]]:
        buffer = picture.screen.buffer
        return [
            (one.data, one.bold, one.fg)
            for row in range(60)
            for column in range(60)
            for one in (buffer[row][column],)
        ]

    assert styles(shown(list(TEXT))) == styles(shown([TEXT]))


def test_code_comes_out_as_it_went_in() -> None:
    code = (
        'def f(x):\n\tif x:\n        return "a long line that is wider than the terminal is"\n\n# ü'
    )
    for source in (f"```python\n{code}\n```", f"Text:\n\n- item\n\n```\n{code}\n```\nend"):
        out = io.StringIO()
        answer = LaidOutAnswer(MARKDOWN, out.write, lambda: (30, 24))
        answer.feed(source)
        answer.finish()
        assert code in re.sub("\x1b\\[[0-9;]*m", "", out.getvalue())


def test_code_deep_in_a_list_is_not_indented_and_its_item_keeps_its_mark() -> None:
    text = """- outer
  - inner
    ```
    one
      two
    ```
- last

1. ```
   three
   ```
"""
    lines = shown([text]).text.split("\n")
    assert [line for line in lines if line] == [
        *("• outer", "  • inner", "one", "  two", "• last", "1.", "three")
    ]


@pytest.mark.parametrize("language", ["", "python", "no-such-language", "py thon {1,2}", "C++"])
def test_any_word_after_a_fence_will_do(language: str) -> None:
    assert "x = 1" in shown([f"```{language}\nx = 1\n```"]).text


def test_nothing_that_has_scrolled_away_is_repeated() -> None:
    """Also not when a table's columns become wider at its end."""
    rows = "".join(f"| row {number} | {'x' * (number // 2)} |\n" for number in range(40))
    text = f"| a | b |\n|---|---|\n{rows}"
    found = shown(pieces_of(text, 1), 60, 10).text
    for number in range(40):
        assert len(re.findall(rf"^row {number}\b", found, re.MULTILINE)) == 1


def test_a_long_paragraph_on_a_low_terminal_is_whole() -> None:
    words = [f"word{number}" for number in range(200)]
    found = shown(pieces_of(" ".join(words), 2), 40, 10).text
    assert found.split() == words


def test_most_of_it_is_only_ever_added_to() -> None:
    """No flicker: the cursor goes back for few of the pieces."""
    writes: list[str] = []
    answer = LaidOutAnswer(MARKDOWN, writes.append, lambda: (80, 24), no_time)
    pieces = pieces_of(TEXT, 3)
    for piece in pieces:
        answer.feed(piece)
    back = sum("\r" in write for write in writes)
    assert back < len(pieces) / 10
    assert not any(re.search(r"\x1b\[[0-9]*[HfsuS]|\x1b\[2J", write) for write in writes)


def test_marks_do_not_appear_and_vanish() -> None:
    picture = Picture(60, 24)
    answer = LaidOutAnswer(MARKDOWN, picture.write, picture.size, no_time)
    for piece in "Some **bold** and `code`, **more**":
        answer.feed(piece)
        assert not set("*`") & set(picture.text)


def test_words_appear_before_their_block_is_known() -> None:
    picture = Picture(60, 24)
    answer = LaidOutAnswer(MARKDOWN, picture.write, picture.size, no_time)
    answer.feed("The quick **bro")
    assert picture.text == "The quick bro"
    answer.feed("wn** fox\n```python\nx = 1\ny")
    assert picture.text.split("\n")[-1] == "y"


@pytest.mark.parametrize("size", [(30, 24), (100, 24), (60, 6), (10, 10)])
def test_a_resize_in_the_midst_loses_nothing(size: tuple[int, int]) -> None:
    words = [f"w{number}" for number in range(120)]
    picture = Picture(60, 24)
    answer = LaidOutAnswer(MARKDOWN, picture.write, picture.size, no_time)
    text = " ".join(words) + "\n\n" + "last *paragraph* of all"
    for number, piece in enumerate(pieces_of(text, 4)):
        if number == 40:
            picture.resize(*size)
        answer.feed(piece)
    answer.finish()
    # pyte cuts lines that a narrower terminal cannot hold: what came before may be gone. What
    # comes after may be broken within words, until the next block has the new width.
    assert "".join([*words[60:], "lastparagraphofall"]) in "".join(picture.text.split())


def test_control_sequences_never_get_through() -> None:
    evil = "a\x1b]0;title\x07b\x1b[2Jc\x9b1md\x1b", "[31me\r\n```\nx\x1b[5my\x08\n```"
    for pieces in (list(evil), list("".join(evil))):
        out = io.StringIO()
        for answer in (
            LaidOutAnswer(MARKDOWN, out.write, lambda: (80, 24), no_time),
            RawAnswer(out.write),
        ):
            for piece in pieces:
                answer.feed(piece)
            answer.finish()
        left = re.sub(r"\x1b\[(?:[0-9;]*m|[0-9]*[AJ])|\r", "", out.getvalue())
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", left)
        assert "\x1b[2J" not in out.getvalue()
        assert "\x1b[31m" not in out.getvalue()


LETTERS = st.sampled_from(
    [*"ab *_`#->|[]()!\n\n  1.", "**", "```", "\n- ", "\n| a | b |\n|-|-|\n", "世"]
)


@settings(max_examples=60)
@given(st.lists(LETTERS, max_size=40), st.integers(1, 4))
def test_whatever_is_written_it_is_all_the_same_in_pieces(letters: list[str], size: int) -> None:
    text = "".join(letters)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert shown(pieces, 24, 100).text == shown([text], 24, 100).text


def test_an_expensive_repaint_is_followed_by_a_rest() -> None:
    """Of a long block; and what came in the rest is there at the end."""
    times = iter(range(1000))
    writes: list[str] = []
    answer = LaidOutAnswer(MARKDOWN, writes.append, lambda: (80, 24), lambda: float(next(times)))
    long = "word " * (LONG // 5 + 1)
    for piece in (long, *"abcdefgh"):
        answer.feed(piece)
    assert len(writes) < 8
    answer.finish()
    assert "".join(writes).endswith("abcdefgh")


def test_a_short_one_is_painted_with_each_piece() -> None:
    """However long a repaint took: the model may pause, and nothing else would show the rest."""
    times = iter(range(1000))
    writes: list[str] = []
    answer = LaidOutAnswer(MARKDOWN, writes.append, lambda: (80, 24), lambda: float(next(times)))
    for letter in "abcdefgh":
        answer.feed(letter)
    assert "".join(writes) == "abcdefgh"
