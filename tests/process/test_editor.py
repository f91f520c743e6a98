"""The editor and the answers as a person sees them: the screen of a terminal, interpreted."""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import Sandbox, until
from tests.fakes.screen import Picture
from tests.fakes.terminal import CTRL_C, CTRL_D, ENTER, Record, Terminal

pytestmark = pytest.mark.timeout(300)

Open = Callable[..., "Window"]

CURSOR_QUERY = "\x1b[6n"
PASTE_ON = "\x1b[?2004h"
PASTE_OFF = "\x1b[?2004l"


class Window(Terminal):
    """A terminal whose screen is looked at."""

    def __init__(self, columns: int = 80, rows: int = 24, **environ: str) -> None:
        super().__init__("--model", "starter", environ={"PROMPT_TOOLKIT_NO_CPR": "0", **environ})
        self.picture = Picture(columns, rows)
        self.child.setwinsize(rows, columns)

    def read_on(self) -> None:
        """Take in what has come."""
        chunk = self.child.read_nonblocking(65536, 0.01)
        self.output += chunk
        for part in chunk.split(CURSOR_QUERY):
            self.picture.write(part)
            chunk = chunk[len(part) :]
            if chunk.startswith(CURSOR_QUERY):
                chunk = chunk.removeprefix(CURSOR_QUERY)
                cursor = self.picture.screen.cursor
                self.type(f"\x1b[{cursor.y + 1};{cursor.x + 1}R")

    def shows(self, pattern: str) -> str:
        """Wait until the screen shows ``pattern``; the screen."""

        def look() -> str | None:
            try:
                self.read_on()
            except Exception as error:  # nothing to read, or the end
                if type(error).__name__ not in ("TIMEOUT", "EOF"):
                    raise
            text = "\n".join(self.picture.lines)
            return text if re.search(pattern, text, re.MULTILINE) else None

        try:
            return until(look, f"the screen shows {pattern!r}")
        except TimeoutError:
            raise AssertionError(f"no {pattern!r} on\n{self.picture.text}") from None

    def resize(self, columns: int, rows: int) -> None:
        self.picture.resize(columns, rows)
        self.child.setwinsize(rows, columns)

    def paste(self, text: str) -> None:
        """As a terminal does it: with marks, if the program has asked for them."""
        marked = self.output.rfind(PASTE_ON) > self.output.rfind(PASTE_OFF)
        self.type(f"\x1b[200~{text}\x1b[201~" if marked else text.replace("\n", "\r"))


@pytest.fixture
def open_window(echo: EchoProcess) -> Iterator[Open]:
    opened: list[Window] = []

    def make(columns: int = 80, rows: int = 24, **environ: str) -> Window:
        opened.append(Window(columns, rows, **environ))
        return opened[-1]

    yield make
    for window in opened:
        window.destroy()


@pytest.fixture
def window(open_window: Open) -> Window:
    """With an editor that has loaded, and Markdown, too."""
    one = open_window()
    one.shows("next: local")
    one.ask("**warm**")
    until_markdown(one)
    return one


def until_markdown(window: Window) -> None:
    """It is loaded behind the prompt; an answer before that is plain."""
    while "**warm**" in window.shows(r"local: starter [^\n]*\n>").split("> **warm**")[-1]:
        window.ask("/clear")
        window.shows("Started a new conversation")
        window.picture.screen.reset()
        window.ask("**warm**")


LINE = "héllo ☃ 你好 wörld"


def test_what_is_typed_and_pasted_at_any_moment_of_the_start_arrives_once(
    open_window: Open, record: Record
) -> None:
    """At 20 moments of the start, in letters and in one piece; the next starts meanwhile."""
    asked: list[str] = []
    before: Window | None = None
    for moment in range(20):
        dice = random.Random(moment)
        asked.append(f"{LINE} {moment}")
        window = open_window()
        window.child.delaybeforesend = dice.uniform(0.0, 0.06)
        first = dice.randint(0, len(LINE))
        for letter in asked[-1][:first]:
            window.type(letter)
            window.child.delaybeforesend = dice.uniform(0.0, 0.02)
        window.paste(asked[-1][first:])
        window.type(ENTER)
        if before is not None:
            leave_after_answer(before)
        before = window
    assert before is not None
    leave_after_answer(before)
    assert sorted(record.questions) == sorted(asked)


def leave_after_answer(window: Window) -> None:
    window.shows("local: starter")
    window.type(CTRL_D)
    assert window.end() == 0


class TestTheLine:
    def test_several_lines_are_one_question_and_tab_completes(
        self, window: Window, record: Record
    ) -> None:
        window.paste("def f():\r\n    return 1\r\n")
        window.shows("return 1")
        window.type(ENTER)
        until(lambda: record.questions[-1] == "def f():\n    return 1", "it is one question")
        window.shows(r"return 1\n(.*\n)*local: starter (.*\n)*>")
        # Alt-Enter and a block make lines.
        window.type("one", "\x1b\r", "two", ENTER)
        until(lambda: record.questions[-1] == "one\ntwo", "one question of two lines")
        window.shows(r"two\n(.*\n)*local: starter (.*\n)*>")
        window.type('"""', ENTER, "/quit", ENTER, ENTER, '@x"""', ENTER)
        until(lambda: record.questions[-1] == "/quit\n\n@x", "the block as it is")
        window.shows(r"@x\n(.*\n)*local: starter (.*\n)*>")
        window.type("/stat", "\t")
        window.shows("> /status")
        window.type(ENTER)
        window.shows("Ready: starter")

    def test_a_block_may_begin_before_the_editor_has_loaded(
        self, open_window: Open, record: Record
    ) -> None:
        open_window().type('"""one', ENTER, "two", ENTER, '"""', ENTER)
        assert record.wait(1) == ["one\ntwo"]

    def test_lines_of_an_earlier_run_are_found_again_but_private_ones_are_not(
        self, open_window: Open, record: Record, sandbox: Sandbox
    ) -> None:
        window = open_window()
        window.shows("next: local")
        for number, line in enumerate(("findable words", "!private secret words")):
            window.ask(line)
            record.wait(number + 1)
            window.shows(r"words\n(.*\n)*local: starter (.*\n)*> *\n")
        window.type(CTRL_D)
        assert window.end() == 0
        second = open_window()
        second.shows("next: local")
        second.type("\x12", "words")  # Ctrl-R
        second.shows("findable words")
        second.type(ENTER, ENTER)
        until(lambda: record.questions[2:] == ["findable words"], "it is asked again")
        (file,) = sandbox.shammah_home.glob("prompt_history*")
        assert "secret" not in file.read_text()
        assert file.stat().st_mode & 0o777 == 0o600

    def test_the_editor_of_the_environment_gets_the_line_and_gives_it_back(
        self, open_window: Open, record: Record, sandbox: Sandbox
    ) -> None:
        script = sandbox.root / "editor"
        script.write_text('#!/bin/sh\nprintf " and more\\n" >> "$1"\n')
        script.chmod(0o700)
        window = open_window(EDITOR=str(script))
        window.shows("next: local")
        window.type("first", "\x18\x05")
        window.shows("and more")
        window.type(ENTER)
        assert record.wait(1) == ["first\n and more"] or record.questions == ["first and more"]
        window.shows("local: starter")
        window.ask("/edit")
        until(lambda: len(record.questions) == 2, "/edit asks again")
        assert record.questions[1].startswith(record.questions[0])
        assert len(record.conversations[1]) == 1  # in the place of the first

    @pytest.mark.parametrize(
        ("script", "said"),
        [
            ("exit 3", r"exited with status 3\. The line is\s+unchanged"),
            (None, r"\S+ was not found\. The line is unchanged"),
        ],
        ids=["fails", "missing"],
    )
    def test_the_line_outlives_an_editor_of_the_environment_that_fails(
        self, open_window: Open, record: Record, sandbox: Sandbox, script: str | None, said: str
    ) -> None:
        path = sandbox.root / "editor"
        if script is not None:
            path.write_text(f"#!/bin/sh\necho lost > $1\n{script}\n")
            path.chmod(0o700)
        window = open_window(EDITOR=str(path))
        window.shows("next: local")
        window.type("first", "\x18\x05")
        window.shows(said)
        window.type(" and second", ENTER)
        assert record.wait(1) == ["first and second"]

    def test_ctrl_c_in_the_editor_of_the_environment_is_that_program_s(
        self, open_window: Open, record: Record, sandbox: Sandbox
    ) -> None:
        path = sandbox.root / "editor"
        path.write_text(
            "#!/bin/sh\ntrap 'echo caught >> $1; exit 0' INT\necho runs\n"
            "while :; do sleep 0.05; done\n"
        )
        path.chmod(0o700)
        window = open_window(EDITOR=str(path))
        window.shows("next: local")
        window.type("first", "\x18\x05")
        window.shows("^runs")
        window.type(CTRL_C)
        window.shows("caught")
        assert "Ctrl-C again" not in window.picture.text
        window.type(ENTER)
        assert record.wait(1) == ["first\ncaught"]

    def test_vi_keys(self, open_window: Open, record: Record, sandbox: Sandbox) -> None:
        (sandbox.shammah_home / "config.toml").write_text('[editor]\nkeys = "vi"\n')
        window = open_window()
        window.shows("next: local")
        window.type("hello word", "\x1b")
        window.type("x", "a", "ld", ENTER)
        assert record.wait(1) == ["hello world"[:9] + "ld"]


class TestAnswers:
    def test_are_laid_out_or_raw_and_steer_nothing(self, window: Window) -> None:
        window.paste("## Title\n- **one**\n\n```python\nx = 1\n```")
        window.type(ENTER)
        shown = window.shows(r"^Title\n• one\n\nx = 1\nlocal: starter")
        assert "**one**" not in shown.split("\nTitle\n")[1]
        os.write(window.child.child_fd, b"\x1b[200~a\x1b[31mred\x1b]0;t\x07\x1b[201~\r")
        window.shows(r"^a\[31mred\]0;t\nlocal: starter")
        window.ask("/raw")
        window.shows("shown as plain text")
        window.ask("**two**")
        window.shows(r"^\*\*two\*\*\nlocal: starter")

    def test_without_colour_they_are_plain(self, open_window: Open) -> None:
        window = open_window(NO_COLOR="1")
        window.shows("next: local")
        window.ask("**one**")
        window.shows(r"^\*\*one\*\*\nlocal: starter")

    def test_a_resize_in_midstream_leaves_the_session_whole(
        self, window: Window, record: Record
    ) -> None:
        window.ask("forever " + " ".join(f"w{number}" for number in range(10, 99)))
        window.shows("w20 ")
        window.resize(50, 15)
        window.shows("w60 w61 ")
        window.resize(120, 40)
        window.shows("w60 w61 ")
        window.type(CTRL_C)
        window.shows(r"\(cancelled\)\n(.*\n)*>$")
        window.ask("next")
        until(lambda: record.questions[-1] == "next", "it goes on")


class TestSizes:
    @pytest.mark.parametrize(("columns", "rows"), [(200, 50), (40, 10)])
    def test_a_whole_conversation(
        self, open_window: Open, record: Record, columns: int, rows: int
    ) -> None:
        window = open_window(columns, rows)
        window.shows("^next: local")
        window.ask("The quick brown fox jumps over the lazy dog and sleeps")
        window.shows(r"sleeps\n(.*\n)*local: starter(.*\n)+>(.*\n)*next: local")
        if columns == 200:
            assert "next: local, starter (local model ready)" in window.shows("next")
        window.ask("/help")
        window.shows("Ctrl-D exits")
        assert all(len(line) <= columns for line in window.picture.lines)
        window.type("wide 你好 and more of it than a narrow terminal has room for")
        window.shows("room for")
        window.type(CTRL_C)
        window.shows("Ctrl-C again")


class TestWhatComesAlong:
    def test_files_but_not_what_is_too_large(
        self, window: Window, record: Record, sandbox: Sandbox
    ) -> None:
        (sandbox.root / "my notes.txt").write_text("remember the milk")
        window.ask(f'what is in @"{sandbox.root}/my notes.txt"')
        brought = "```txt\nremember the milk\n```"
        until(lambda: brought in record.questions[-1], "it is asked with the file")
        window.shows(r"milk\n(.*\n)*local: starter (.*\n)*>")
        (sandbox.root / "big").write_text("word " * 10_000)
        before = len(record.questions)
        window.ask(f"@{sandbox.root}/big")
        window.shows(r"about 12,[0-9]{3} tokens; the\s+local\s+model\s+takes\s+4,096")
        assert len(record.questions) == before

    def test_the_output_of_a_command_after_a_yes(
        self, window: Window, record: Record, sandbox: Sandbox
    ) -> None:
        trace = sandbox.root / "trace"
        window.ask(f"!touch {trace}")
        window.shows(r"\[y\]es, \[n\]o:")
        window.type(ENTER)
        window.shows("Not run")
        window.ask(f"!touch {trace} again")
        window.shows(r"again and attach its output\? \[y\]es, \[n\]o:")
        window.type(CTRL_C)
        window.shows(r"\^C\nNot run")
        assert not Path(trace).exists()
        window.ask("!echo begun; sleep 1000")
        window.shows(r"1000 and attach its output\? \[y\]es, \[n\]o:")
        window.type("y", ENTER)
        window.shows("^begun$")
        window.type(CTRL_C)
        window.shows("stopped by Ctrl-C")
        window.ask("/clear")
        window.shows("Started a new conversation")
        window.ask("!echo $((6*7)); exit 3")
        window.shows(r"exit 3 and attach its output\? \[y\]es, \[n\]o:")
        window.type("y", ENTER)
        window.shows(r"^42\n(.*\n)*Attached to your next question \(1 line, exit status 3\)")
        window.ask("what is it")
        until(lambda: record.questions[-1].startswith("what is it"), "it is asked")
        assert record.questions[-1].endswith("(exit status 3):\n```\n42\n```")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_in_midstream_ends_it_cleanly(
    window: Window, echo: EchoProcess, number: signal.Signals
) -> None:
    window.ask("forever")
    window.shows("forever forever")
    window.child.kill(number)
    window.end()
    assert "Traceback" not in window.text
    assert window.is_sane()
    until(lambda: echo.status().status.clients == 0, "its lease is given back")
