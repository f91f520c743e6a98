"""The first prompt of a new home: a few lines above what is being typed, once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from shammah.repl.welcome import MARKER
from tests.fakes.command import run
from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import Sandbox
from tests.fakes.terminal import CTRL_D, ENTER, Record, Terminal

pytestmark = pytest.mark.timeout(300)

StartEcho = Callable[..., EchoProcess]


@pytest.fixture(autouse=True)
def newcomer(sandbox: Sandbox) -> None:
    (sandbox.shammah_home / MARKER).rmdir()


@pytest.mark.parametrize("delay_ms", [0, 40, 120, 250, 400])
def test_it_neither_loses_nor_doubles_what_is_typed_meanwhile(
    start_echo: StartEcho, sandbox: Sandbox, delay_ms: int
) -> None:
    record = Record(sandbox.root / "record")
    start_echo("--record", str(record.path))
    terminal = Terminal("--model", "starter")
    terminal.wait_prompt()
    time.sleep(delay_ms / 1000)  # how far it has come by then is what differs
    for character in "typed ahead ☃":
        terminal.type(character)
    terminal.expect("Welcome")
    terminal.expect("Ctrl-D exits")
    terminal.type(" and after", ENTER)
    assert record.wait(1) == ["typed ahead ☃ and after"]
    terminal.wait_answer()
    terminal.wait_editor()
    terminal.type(CTRL_D)
    assert terminal.end() == 0
    assert terminal.text.count("Welcome") == 1
    assert (sandbox.shammah_home / MARKER).exists()


def test_the_second_run_says_nothing(start_echo: StartEcho) -> None:
    start_echo()
    for welcomes in (1, 0):
        terminal = Terminal("--model", "starter")
        terminal.ask("hello")
        terminal.wait_answer()
        terminal.wait_editor()
        terminal.type("x")
        terminal.expect("x")
        terminal.type("\x15", CTRL_D)
        terminal.end()
        assert terminal.text.count("Welcome") == welcomes


def test_a_dumb_terminal_gets_it_after_its_first_line(start_echo: StartEcho) -> None:
    start_echo()
    terminal = Terminal("--model", "starter", environ={"TERM": "dumb"})
    terminal.ask("hello")
    terminal.expect("Ctrl-D exits")
    terminal.type(CTRL_D)
    assert terminal.end() == 0


def test_nothing_comes_before_whom_to_call(start_echo: StartEcho) -> None:
    start_echo()
    terminal = Terminal("--model", "starter", environ={"TERM": "dumb"})
    terminal.ask("I feel suicidal tonight")
    told = terminal.expect("(?i)emergency|call")
    assert "Welcome" not in told
    terminal.wait_prompt()
    terminal.type(CTRL_D)
    assert terminal.end() == 0


def test_nothing_of_it_is_in_a_pipe(start_echo: StartEcho, sandbox: Sandbox) -> None:
    start_echo()
    ended = run("ask", "--model", "starter", "hello")
    assert "Welcome" not in ended.said
    assert "Welcome" not in run("--model", "starter", stdin="hello").said
    assert not os.path.exists(sandbox.shammah_home / MARKER)
