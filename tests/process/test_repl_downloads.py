"""The prompt while a better model is on its way: what is shown, said, and left alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from shammah.bus.messages import Ready
from shammah.bus.transfers import Transferring
from tests.fakes.command import run
from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import until
from tests.fakes.terminal import CTRL_C, CTRL_D, ENTER, SEQUENCE, Record, Terminal

pytestmark = pytest.mark.timeout(300)

StartEcho = Callable[..., EchoProcess]
Open = Callable[..., Terminal]

MODEL = "acme/better"
GOES_ON = (
    f"The download of {MODEL} continues in the background (41%). To see it: `shammah status`; "
    f"to cancel it: `shammah models pull --cancel {MODEL}`."
)
ONE_DIGIT = r"\x1b\[0;2m\d\x1b"
"""All that changes from one event to the next: that of the rate, dimmed."""

WIPE = re.compile(r"\x1b\[[0-3]?[JK]")
"""Erases what is on the screen."""


ASKS_WHERE = re.escape("\x1b[6n")
"""The editor asks for the cursor's place, and draws below its line only once it knows it."""


class Answering(Terminal):
    """A terminal that says where its cursor is."""

    def __init__(self, *arguments: str, **environ: str) -> None:
        super().__init__(*arguments, environ={"PROMPT_TOOLKIT_NO_CPR": "0", **environ})

    def wait_editor(self) -> None:
        self.tell_place()
        super().wait_editor()

    def tell_place(self) -> None:
        self.expect(ASKS_WHERE)
        self.type("\x1b[3;1R")


@pytest.fixture
def open_terminal() -> Iterator[Open]:
    opened: list[Terminal] = []

    def make(*arguments: str, **environ: str) -> Terminal:
        opened.append(Answering(*arguments, **environ))
        return opened[-1]

    yield make
    for terminal in opened:
        terminal.destroy()


@pytest.fixture
def echo(start_echo: StartEcho, record: Record) -> EchoProcess:
    """A stand-in for a model that has come to 41 %, and tells so twenty times a second."""
    worker = start_echo("--record", str(record.path), "--fetching", MODEL)
    until(lambda: _share(worker) == 41, "41 %")
    return worker


def _share(worker: EchoProcess) -> int:
    state = worker.status().status.state
    return state.successor.done if isinstance(state, Ready) and state.successor else 0


@pytest.fixture
def terminal(echo: EchoProcess, open_terminal: Open) -> Terminal:
    """At a prompt, with the line below it."""
    one = open_terminal("--model", "starter")
    one.wait_editor()
    one.expect("local model: fetching better: 41%, ")
    return one


def unwrapped(terminal: Terminal) -> str:
    """All of the output as one line."""
    return " ".join(terminal.text.split())


class TestTheLineBelow:
    def test_follows_the_events_and_touches_nothing_else(self, terminal: Terminal) -> None:
        terminal.type("half")
        terminal.expect("half")
        begin = len(terminal.output)
        rates = [terminal.expect(ONE_DIGIT)[-2] for _ in range(14)]
        assert len(set(rates)) >= 4
        written = terminal.output[begin:-1]  # the next sequence has begun
        assert not WIPE.search(written)
        assert SEQUENCE.sub("", written).strip("\r\n 0123456789") == ""

    def test_leaves_what_is_typed_alone(self, terminal: Terminal, record: Record) -> None:
        question = "what is a monad"
        for letter in question:
            terminal.type(letter)
            terminal.expect(ONE_DIGIT)
        terminal.type(ENTER)
        assert record.wait(1) == [question]
        terminal.wait_answer()

    def test_is_gone_when_nothing_is_coming(
        self, start_echo: StartEcho, open_terminal: Open
    ) -> None:
        start_echo()
        terminal = open_terminal("--model", "starter")
        terminal.wait_editor()
        terminal.ask("hello")
        terminal.wait_answer()
        terminal.wait_editor()
        terminal.type(CTRL_D)
        assert terminal.end() == 0
        assert "fetching" not in terminal.text
        assert "The download of" not in terminal.text


class TestLeaving:
    @pytest.mark.parametrize("way", ["ctrl-d", "quit", "ctrl-c"])
    def test_says_once_what_goes_on(self, terminal: Terminal, way: str) -> None:
        if way == "ctrl-d":
            terminal.type(CTRL_D)
        elif way == "quit":
            terminal.ask("/quit")
        else:
            terminal.type(CTRL_C)
            terminal.expect("Press Ctrl-C again or Ctrl-D to exit")
            terminal.leave_by_ctrl_c()
        assert terminal.end() == 0
        assert unwrapped(terminal).count(GOES_ON) == 1
        assert terminal.is_sane()

    def test_an_answer_to_one_question_says_it_on_stderr(self, echo: EchoProcess) -> None:
        asked = run("ask", "--model", "starter", "hello")
        assert (asked.code, asked.out) == (0, "hello\n")
        assert asked.err.count(GOES_ON) == 1

    def test_an_answer_without_a_download_says_nothing(self, start_echo: StartEcho) -> None:
        start_echo()
        assert "The download of" not in run("ask", "--model", "starter", "hello").err


class TestNews:
    @pytest.fixture
    def download(self, start_echo: StartEcho) -> Callable[..., EchoProcess]:
        def start(*notices: str, model: str = MODEL) -> EchoProcess:
            options = [option for notice in notices for option in ("--notice", notice)]
            worker = start_echo("--transferring", model, *options, role="download")
            until(lambda: isinstance(worker.status().status.state, Transferring), "transferring")
            return worker

        return start

    def test_is_told_once_above_the_line_that_is_typed(
        self,
        terminal: Terminal,
        record: Record,
        download: Callable[..., EchoProcess],
    ) -> None:
        terminal.type("half a")
        terminal.expect("half a")
        worker = download("weights arrived damaged.")
        terminal.expect(f"{MODEL}: weights arrived damaged.")
        worker.status()  # which is an event, and it tells the same again
        terminal.tell_place()
        terminal.expect("> half a")  # the prompt and what was typed are there again
        terminal.type(" question", ENTER)
        assert record.wait(1) == ["half a question"]
        terminal.wait_answer()
        terminal.wait_editor()
        terminal.type(CTRL_D)
        assert terminal.end() == 0
        assert unwrapped(terminal).count("weights arrived damaged.") == 1

    def test_is_told_before_the_next_prompt_where_there_is_no_editor(
        self,
        echo: EchoProcess,
        open_terminal: Open,
        download: Callable[..., EchoProcess],
    ) -> None:
        download("weights arrived damaged.")
        terminal = open_terminal("--model", "starter", TERM="dumb")
        while "damaged" not in terminal.output:
            terminal.wait_prompt()
            terminal.ask("hello")
            terminal.wait_answer()
        terminal.type(CTRL_D)
        assert terminal.end() == 0
        assert unwrapped(terminal).count("weights arrived damaged.") == 1

    def test_of_the_model_itself_is_told_once_too(
        self, start_echo: StartEcho, open_terminal: Open
    ) -> None:
        worker = start_echo("--notice", "There is no network.")
        terminal = open_terminal("--model", "starter")
        terminal.wait_editor()
        terminal.ask("hello")
        terminal.wait_answer()
        worker.status()
        terminal.wait_editor()
        terminal.type(CTRL_D)
        assert terminal.end() == 0
        assert unwrapped(terminal).count("There is no network.") == 1

    def test_of_other_models_is_for_others(
        self,
        terminal: Terminal,
        download: Callable[..., EchoProcess],
    ) -> None:
        worker = download("weights arrived damaged.", model="acme/other")
        until(lambda: worker.status().what, "it tells")
        terminal.ask("hello")
        terminal.wait_answer()
        terminal.wait_editor()
        terminal.type(CTRL_D)
        assert terminal.end() == 0
        assert "damaged" not in terminal.text
