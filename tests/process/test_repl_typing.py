"""What is typed at whatever moment arrives once and whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.fakes.echo_process import EchoProcess
from tests.fakes.terminal import CTRL_D, ENTER, Held, Record, Terminal

pytestmark = pytest.mark.timeout(300)

Open = Callable[..., Terminal]


@pytest.fixture
def terminal(echo: EchoProcess) -> Iterator[Terminal]:
    """Just started: nothing is awaited yet."""
    one = Terminal("--model", "starter")
    yield one
    one.destroy()


def assert_leaves_after(terminal: Terminal, answers: int) -> None:
    for _ in range(answers):
        terminal.wait_answer()
    terminal.wait_editor()
    terminal.type(CTRL_D)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text


def test_before_the_prompt(terminal: Terminal, record: Record) -> None:
    terminal.ask("first")
    assert record.wait(1) == ["first"]
    assert_leaves_after(terminal, 1)
    assert record.questions == ["first"]


def test_at_the_prompt_before_the_editor(terminal: Terminal, record: Record) -> None:
    terminal.wait_prompt()
    terminal.ask("hello world")
    assert record.wait(1) == ["hello world"]


def test_after_the_editor_has_loaded(terminal: Terminal, record: Record) -> None:
    terminal.wait_editor()
    terminal.ask("hello world")
    assert record.wait(1) == ["hello world"]


@pytest.mark.parametrize(
    ("early", "late"),
    [
        ("hello wor", "ld"),
        ("héllo ☃ mid", "dle ü"),
        ("你好", "、世界"),
        ("x" * 3000, "y" * 50),
        ("trailing ", " spaces"),
    ],
    ids=["words", "accents", "wide", "long", "spaces"],
)
def test_half_a_line_early_and_the_rest_in_the_editor(
    terminal: Terminal, record: Record, early: str, late: str
) -> None:
    terminal.wait_prompt()
    terminal.type(early)
    terminal.wait_editor()
    terminal.ask(late)
    assert record.wait(1) == [early + late]


def test_two_whole_lines_early(terminal: Terminal, record: Record) -> None:
    terminal.type("one", ENTER, "two", ENTER)
    assert record.wait(2) == ["one", "two"]
    assert_leaves_after(terminal, 2)
    assert record.questions == ["one", "two"]


def test_two_lines_and_a_half_early(terminal: Terminal, record: Record) -> None:
    terminal.type("one", ENTER, "two", ENTER, "thr")
    record.wait(2)
    terminal.wait_editor()
    terminal.ask("ee")
    assert record.wait(3) == ["one", "two", "three"]


def test_a_correction_before_the_editor_has_loaded(terminal: Terminal, record: Record) -> None:
    terminal.wait_prompt()
    terminal.type("hellp", "\x7f", "o wrld", "\x7f\x7f\x7f", "orld")
    terminal.ask("!")
    assert record.wait(1) == ["hello world!"]


def test_letter_by_letter_through_the_change_of_hands(terminal: Terminal, record: Record) -> None:
    """About 5 ms a letter, from before the prompt until after the editor has loaded."""
    text = "the quick brown fox jumps over the lazy dog ☃ " * 4
    terminal.child.delaybeforesend = 0.005
    terminal.type(*text)
    terminal.ask(".")
    assert record.wait(1) == [f"{text}."]


@pytest.mark.parametrize("moment", range(1, 5))
def test_a_line_typed_at_any_moment_of_loading(
    echo: EchoProcess, record: Record, moment: int
) -> None:
    """The line is spread over the load at a different pace each time."""
    terminal = Terminal("--model", "starter")
    try:
        terminal.wait_prompt()
        terminal.child.delaybeforesend = 0.02 * moment
        terminal.type("one ", "two ", "three ", "four ", "five ", "six", ENTER)
        assert record.wait(1) == ["one two three four five six"]
        assert_leaves_after(terminal, 1)
        assert record.questions == ["one two three four five six"]
    finally:
        terminal.destroy()


def test_a_line_during_an_answer_is_the_next_question(
    terminal: Terminal, held: Held, record: Record
) -> None:
    terminal.wait_editor()
    terminal.ask(held.question)
    terminal.wait_answering("f g h")
    terminal.ask("next")
    held.go_on()
    assert record.wait(2)[1] == "next"


def test_half_a_line_during_an_answer_and_the_rest_after_it(
    terminal: Terminal, held: Held, record: Record
) -> None:
    terminal.wait_editor()
    terminal.ask(held.question)
    terminal.wait_answering("f g h")
    terminal.type("ne")
    held.go_on()
    terminal.wait_answer()
    terminal.wait_editor()
    terminal.ask("xt")
    assert record.wait(2)[1] == "next"


def test_what_is_typed_during_an_answer_is_not_shown_in_it(terminal: Terminal, held: Held) -> None:
    terminal.wait_editor()
    terminal.ask(held.question)
    terminal.wait_answering("f g h")
    terminal.type("INTRUDER")
    held.go_on()
    assert "INTRUDER" not in terminal.expect("x y z")


def test_what_is_typed_between_two_prompts_is_not_shown_in_what_is_said(
    terminal: Terminal,
) -> None:
    """The editor gives the terminal back while a command says something."""
    terminal.ask("hello")
    terminal.wait_answer()
    terminal.wait_editor()
    echoes = set()
    for number in range(20):
        terminal.ask(f"/none{number}")
        echoes |= {terminal.echoes for _ in range(10_000)}
    terminal.expect("There is no command /none19")
    assert echoes == {False}
    terminal.wait_editor()
    terminal.type(CTRL_D)
    assert terminal.end() == 0
    assert terminal.is_sane()


def test_several_lines_pasted_into_the_editor_are_one_question(
    terminal: Terminal, record: Record
) -> None:
    terminal.wait_editor()
    terminal.type("\x1b[200~def f():\r    return 1\x1b[201~", ENTER)
    assert record.wait(1) == ["def f():\n    return 1"]


def test_ctrl_d_during_an_answer_leaves_after_it(terminal: Terminal, held: Held) -> None:
    terminal.wait_editor()
    terminal.ask(held.question)
    terminal.wait_answering("f g h")
    terminal.type(CTRL_D)
    held.go_on()
    assert terminal.end() == 0
    assert "x y z" in terminal.text


def test_a_line_and_ctrl_d_early_are_a_question_and_the_end(
    terminal: Terminal, record: Record
) -> None:
    terminal.type("one", ENTER, CTRL_D)
    assert terminal.end() == 0
    assert record.questions == ["one"]


def test_an_empty_line_is_no_question(terminal: Terminal, record: Record) -> None:
    terminal.type(ENTER, "   ", ENTER)
    terminal.wait_editor()
    terminal.type(ENTER, "  ", ENTER)
    terminal.ask("real")
    assert record.wait(1) == ["real"]


def test_bytes_that_are_no_text_do_not_end_the_session(terminal: Terminal, record: Record) -> None:
    terminal.wait_prompt()
    os.write(terminal.child.child_fd, b"caf\xe9 early\r")
    record.wait(1)
    terminal.wait_editor()
    os.write(terminal.child.child_fd, b"caf\xe9 late\r")
    record.wait(2)
    terminal.wait_editor()
    terminal.ask("still there")
    assert record.wait(3)[2] == "still there"
