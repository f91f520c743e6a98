"""Keys that come in the instant after Enter, while the terminal is still the editor's."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.fakes import lingering
from tests.fakes.echo_process import EchoProcess
from tests.fakes.terminal import CTRL_C, CTRL_D, ENTER, Held, Record, Terminal

pytestmark = pytest.mark.timeout(300)


LINGERING = (sys.executable, "-P", str(lingering.__file__))


@pytest.fixture
def terminal(echo: EchoProcess) -> Iterator[Terminal]:
    """With an editor that is slow to give the terminal back."""
    one = Terminal("--model", "starter", command=LINGERING)
    one.wait_editor()
    yield one
    one.destroy()


def enter(terminal: Terminal, question: str, *keys: str) -> None:
    """Ask, and press ``keys`` when the editor has read Enter and nothing else."""
    terminal.ask(question)
    terminal.expect(lingering.LINGERS)
    terminal.type(*keys)


def test_ctrl_c_is_for_what_begins_and_not_for_the_next_prompt(
    terminal: Terminal, record: Record
) -> None:
    enter(terminal, "forever", CTRL_C)
    terminal.expect("Press Ctrl-C again or Ctrl-D to exit")
    terminal.wait_editor()
    enter(terminal, "hello", "x")
    assert record.wait(1) == ["hello"]
    terminal.wait_answer()


def test_ctrl_c_read_together_with_enter_is_for_what_begins(
    terminal: Terminal, record: Record
) -> None:
    terminal.type(f"forever{ENTER}{CTRL_C}")
    terminal.expect(lingering.LINGERS)
    terminal.type("n")
    terminal.expect("Press Ctrl-C again or Ctrl-D to exit")
    terminal.wait_editor()
    enter(terminal, "ext", "x")
    assert record.wait(1) == ["next"]


def test_what_is_typed_around_a_ctrl_c_stays_whole(terminal: Terminal, record: Record) -> None:
    enter(terminal, "forever", f"be{CTRL_C}fore")
    terminal.expect("Press Ctrl-C again or Ctrl-D to exit")
    terminal.wait_editor()
    enter(terminal, "", "x")
    assert record.wait(1) == ["before"]


@pytest.mark.parametrize(
    ("keys", "later", "questions"),
    [
        ("ne", f"xt{ENTER}", ["first", "next"]),
        (f"two{ENTER}three{ENTER}", "", ["first", "two", "three"]),
        (f"two{ENTER}thr", f"ee{ENTER}", ["first", "two", "three"]),
        ("\x1b[200~a\rb\x1b[201~", ENTER, ["first", "a\nb"]),
    ],
    ids=["half a line", "lines", "a line and a half", "paste"],
)
def test_typed_ahead_arrives_once_and_whole(
    terminal: Terminal, record: Record, keys: str, later: str, questions: list[str]
) -> None:
    enter(terminal, "first", keys)
    terminal.wait_answer()
    terminal.wait_editor()
    terminal.type(later)
    for _ in questions[1:]:
        terminal.expect(lingering.LINGERS)
        terminal.type(" ")
    assert record.wait(len(questions)) == questions


def test_lines_come_in_the_order_in_which_they_were_typed(
    terminal: Terminal, record: Record, held: Held
) -> None:
    enter(terminal, held.question, f"two{ENTER}")
    terminal.wait_answering("f g h")
    terminal.ask("three")
    held.go_on()
    terminal.expect(lingering.LINGERS)
    terminal.type(" ")
    record.wait(2)
    terminal.expect(lingering.LINGERS)
    terminal.type(" ")
    assert record.wait(3)[1:] == ["two", "three"]


def test_ctrl_d_leaves_after_the_answer(terminal: Terminal, record: Record) -> None:
    enter(terminal, "a b c", CTRL_D)
    terminal.expect("a b c\r\n")
    terminal.wait_answer()
    terminal.expect(lingering.LINGERS)
    terminal.type(" ")
    assert terminal.end() == 0
    assert terminal.is_sane()
