"""What a model thinks and answers, on terminals with and without styles, and in pipes."""

from __future__ import annotations

import io
from collections.abc import Mapping

import pytest

from shammah.bus.messages import Failed
from shammah.terminal.screen import Screen
from tests.fakes.screen import Picture

DIM = "\x1b[2m"


class Written(io.StringIO):
    """A stream that is a terminal, or none."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def written(environ: Mapping[str, str], *, terminal: bool = True, ends: bool = True) -> str:
    """Thoughts in three pieces, and an answer unless it ``ends`` with the thoughts."""
    stream = Written(terminal)
    screen = Screen(environ, stream)
    for piece in ("\n\n", "Let me", " see.\n", "A dog.\n"):
        screen.thought(piece)
    if ends:
        screen.end_failed(Failed("answer_empty", "It thought only."))
    else:
        screen.answer("It is a dog.")
        screen.hint("local: m")
    return stream.getvalue()


@pytest.mark.parametrize("environ", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_thoughts_have_a_title_and_stand_before_the_answer(environ: dict[str, str]) -> None:
    told = written({"TERM": "xterm", **environ}, ends=False)
    picture = Picture()
    picture.write(told)
    lines = [line for line in picture.text.split("\n") if line]
    assert lines == ["Thoughts:", "Let me see.", "A dog.", "It is a dog.", "local: m"]
    assert (DIM + "Let me" in told) is (not environ)
    assert DIM + "It is" not in told


def test_in_a_pipe_they_are_plain_lines() -> None:
    told = written({}, terminal=False, ends=False)
    assert told == "Thoughts:\nLet me see.\nA dog.\n\nIt is a dog.\nlocal: m\n"


def test_what_comes_of_no_answer_begins_a_line() -> None:
    assert written({}, terminal=False) == "Thoughts:\nLet me see.\nA dog.\n\nIt thought only.\n"


def test_thoughts_of_nothing_are_not_shown() -> None:
    stream = Written(False)
    screen = Screen({}, stream)
    screen.thought("\n\n")
    screen.answer("Yes.")
    assert stream.getvalue() == "Yes."


LONG = "some **bold** words " + "and more " * 8
"""A line and a half, with marks."""
BROKEN = LONG[:77]
"""What of it fits into a line."""


def answered(screen: Screen, stream: Written) -> str:
    """The first line of an answer on a terminal."""
    stream.truncate(0)
    screen.answer(LONG)
    screen.begin_line()
    picture = Picture()
    picture.write(stream.getvalue())
    return picture.text.split("\n")[0]


def test_an_answer_is_plain_until_markdown_is_loaded_and_when_it_is_off() -> None:
    stream = Written(True)
    screen = Screen({"TERM": "xterm"}, stream)
    assert answered(screen, stream) == BROKEN
    screen.load_markdown()
    assert answered(screen, stream).startswith("some bold words and more")
    screen.markdown = False
    assert answered(screen, stream) == BROKEN


@pytest.mark.parametrize(
    ("environ", "line"), [({"NO_COLOR": "1"}, BROKEN), ({"TERM": "dumb"}, LONG[:80])]
)
def test_where_markdown_cannot_be_shown_answers_stay_plain(
    environ: dict[str, str], line: str
) -> None:
    stream = Written(True)
    screen = Screen({"TERM": "xterm", **environ}, stream)
    screen.load_markdown()
    assert answered(screen, stream) == line.rstrip()
