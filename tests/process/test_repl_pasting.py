"""Several lines that are pasted while something else has the terminal are one question."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.echo_process import EchoProcess
from tests.fakes.terminal import CTRL_C, CTRL_D, ENTER, Held, Record, Terminal

pytestmark = pytest.mark.timeout(300)


MARKS_ON, MARKS_OFF = "\x1b[?2004h", "\x1b[?2004l"


def pasted(text: str) -> str:
    """As a terminal hands it over that was asked for marks."""
    return f"\x1b[200~{text}\x1b[201~"


@pytest.fixture
def terminal(echo: EchoProcess) -> Iterator[Terminal]:
    """At its first prompt, which no editor has yet."""
    one = Terminal("--model", "starter")
    one.wait_prompt()
    assert MARKS_ON in one.output
    yield one
    one.destroy()


def leave(terminal: Terminal) -> None:
    terminal.wait_editor()
    terminal.type(CTRL_D)
    assert terminal.end() == 0
    assert terminal.output.rfind(MARKS_OFF) > terminal.output.rfind(MARKS_ON)
    assert terminal.is_sane()
    assert "Traceback" not in terminal.text


class TestAtTheFirstPrompt:
    @pytest.mark.parametrize("end", ["\r", "\n", "\r\n"], ids=["CR", "LF", "CRLF"])
    def test_with_enter_it_is_one_question(
        self, terminal: Terminal, record: Record, end: str
    ) -> None:
        lines = ["def f(x):", "    return x", "f(1) ☃ 你好"]
        terminal.type(pasted(end.join(lines)), ENTER)
        (question,) = record.wait(1)
        assert [line for line in question.split("\n") if line] == lines
        terminal.wait_answer()
        leave(terminal)
        assert len(record.questions) == 1

    def test_its_first_line_keeps_its_indentation(self, terminal: Terminal, record: Record) -> None:
        text = "    if x:\n        return\n    y"
        terminal.type(pasted(text), ENTER)
        assert record.wait(1) == [text]
        terminal.wait_answer()
        terminal.wait_editor()
        terminal.type(pasted(text), ENTER)  # and so through the editor
        assert record.wait(2) == [text, text]
        terminal.wait_answer()
        leave(terminal)

    def test_without_enter_it_waits_in_the_editor(self, terminal: Terminal, record: Record) -> None:
        terminal.type("what is ", pasted("a\rb\r\rc"))
        terminal.wait_editor()
        terminal.ask(" here?")
        assert record.wait(1) == ["what is a\nb\n\nc here?"]
        terminal.wait_answer()
        leave(terminal)

    def test_with_what_is_typed_after_it(self, terminal: Terminal, record: Record) -> None:
        terminal.type(pasted("a\rb"), " and more", ENTER, "two", ENTER, "thr")
        assert record.wait(2) == ["a\nb and more", "two"]
        terminal.wait_answer()
        terminal.wait_answer()
        terminal.wait_editor()
        terminal.ask("ee")
        assert record.wait(3)[2] == "three"

    def test_a_long_one_is_whole(self, terminal: Terminal, record: Record) -> None:
        text = "\n".join(f"line {number} {'x' * 60}" for number in range(500))
        terminal.type(pasted(text.replace("\n", "\r")), ENTER)
        terminal.wait_answer()
        assert record.questions == [text]

    def test_one_line_keeps_no_marks(self, terminal: Terminal, record: Record) -> None:
        terminal.type(pasted("just this"), ENTER)
        assert record.wait(1) == ["just this"]

    def test_whose_end_is_lost_is_still_there(self, terminal: Terminal, record: Record) -> None:
        terminal.type("\x1b[200~a\rb")
        terminal.wait_editor()
        terminal.ask("c")
        assert record.wait(1) == ["a\nbc"]


class TestDuringAnAnswer:
    def test_with_enter_it_is_the_next_question(
        self, terminal: Terminal, held: Held, record: Record
    ) -> None:
        terminal.wait_editor()
        terminal.ask(held.question)
        terminal.wait_answering("f g h")
        terminal.type(pasted("a\rb"), ENTER)
        held.go_on()
        assert record.wait(2)[1] == "a\nb"
        shown = terminal.expect("> a\r\nb\r\n")
        assert "[200~" not in shown
        terminal.wait_answer()
        leave(terminal)

    def test_without_enter_it_waits_in_the_editor(
        self, terminal: Terminal, held: Held, record: Record
    ) -> None:
        terminal.wait_editor()
        terminal.ask(held.question)
        terminal.wait_answering("f g h")
        terminal.type(pasted("a\rb"))
        held.go_on()
        terminal.wait_answer()
        terminal.wait_editor()
        terminal.ask("!")
        assert record.wait(2)[1] == "a\nb!"

    def test_ctrl_c_ends_the_waiting_for_its_end(
        self, terminal: Terminal, held: Held, record: Record
    ) -> None:
        terminal.wait_editor()
        terminal.ask(held.question)
        terminal.wait_answering("f g h")
        terminal.type("\x1b[200~a\rb")
        held.go_on()
        terminal.wait_answer()
        terminal.type(CTRL_C)
        terminal.expect("Press Ctrl-C again or Ctrl-D to exit")
        terminal.wait_editor()
        terminal.ask("next")
        assert record.wait(2)[1] == "next"


def test_ctrl_c_before_anything_has_loaded_leaves_no_marks(terminal: Terminal) -> None:
    terminal.type(CTRL_C)
    if terminal.child.isalive():
        terminal.type(CTRL_D)
    terminal.end()
    assert terminal.output.rfind(MARKS_OFF) > terminal.output.rfind(MARKS_ON)
