"""``shammah status`` on a terminal, while workers come, work, flood and go."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from shammah.bus.messages import Ready
from shammah.cli.status_live import FRAMES_S
from shammah.terminal.console import MOST_COLUMNS, MOST_ROWS
from tests.fakes.command import run
from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import LIMIT_S, until
from tests.fakes.terminal import CTRL_C, Terminal

pytestmark = pytest.mark.timeout(300)

StartEcho = Callable[..., EchoProcess]
Open = Callable[..., Terminal]

DRAWN = "\x1b[H"
"""Every drawing begins in the upper left corner."""

ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"


@pytest.fixture
def open_terminal() -> Iterator[Open]:
    opened: list[Terminal] = []

    def make(*arguments: str, environ: dict[str, str] | None = None) -> Terminal:
        opened.append(Terminal("status", *arguments, environ=environ))
        return opened[-1]

    yield make
    for terminal in opened:
        terminal.destroy()


def leave(terminal: Terminal) -> None:
    terminal.type(CTRL_C)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.output
    assert terminal.is_sane()


def test_workers_come_and_go_under_it(open_terminal: Open, start_echo: StartEcho) -> None:
    terminal = open_terminal()
    terminal.expect("0 of 6 workers")
    echo = start_echo()
    terminal.expect("Ready: starter")
    echo.kill()
    terminal.expect("inference +gone")
    start_echo(model="1.5B")
    terminal.expect(r"Ready: 1\.5B")
    leave(terminal)
    assert terminal.output.count(ENTER) == terminal.output.count(LEAVE) == 1
    assert terminal.output.endswith(("\x1b[?25h", LEAVE, "\r\n")) or LEAVE in terminal.output


def test_it_shows_what_happened_before_it_came(open_terminal: Open, start_echo: StartEcho) -> None:
    start_echo("--stages", "2")
    terminal = open_terminal("--role", "inference")
    terminal.expect("inference +started")
    leave(terminal)


@pytest.mark.parametrize(("rows", "columns"), [(10, 40), (50, 200), (1, 1), (2000, 30_000)])
def test_it_follows_the_size_of_the_terminal(
    open_terminal: Open, start_echo: StartEcho, rows: int, columns: int
) -> None:
    start_echo("--fetching", "acme/big")
    terminal = open_terminal()
    terminal.expect("Ready: starter")
    terminal.child.setwinsize(rows, columns)
    if columns > 5:
        terminal.expect("Shammah")
        terminal.expect("inference")
    else:
        for _ in range(3):
            terminal.child.expect_exact(DRAWN)
    terminal.child.setwinsize(24, 80)
    terminal.expect("Ready: starter")
    leave(terminal)
    assert max(map(len, terminal.output.split(DRAWN))) < 2 * MOST_ROWS * MOST_COLUMNS


def test_without_colours(open_terminal: Open, start_echo: StartEcho) -> None:
    start_echo()
    terminal = open_terminal(environ={"NO_COLOR": "1"})
    terminal.expect("Ready: starter")
    leave(terminal)
    assert "\x1b[3" not in terminal.output
    assert "\x1b[2m" not in terminal.output


def test_a_dumb_terminal_gets_lines(open_terminal: Open, start_echo: StartEcho) -> None:
    start_echo()
    terminal = open_terminal(environ={"TERM": "dumb"})
    terminal.expect("Ready: starter")
    leave(terminal)
    assert "\x1b" not in terminal.output


def test_a_flood_of_events_does_not_keep_it_busy(
    open_terminal: Open, start_echo: StartEcho
) -> None:
    """Some hundreds of events a second: far fewer drawings than events, and time left over."""
    echo = start_echo("--fetching", "acme/big", "--fetch-ms", "1")
    terminal = open_terminal("--role", "inference")
    terminal.expect("Ready: starter")
    first, process = echo.status().seq, psutil.Process(terminal.pid)
    began, began_s = process.cpu_times(), time.monotonic()
    seen = ""
    while echo.status().seq < first + 2000:
        seen += terminal.child.read_nonblocking(65536, LIMIT_S)
    ended, ended_s = process.cpu_times(), time.monotonic()
    # Some were drawn before and read now.
    assert 0 < seen.count(DRAWN) < (ended_s - began_s) / FRAMES_S + 10
    assert ended.user + ended.system - began.user - began.system < LIMIT_S
    leave(terminal)


def test_it_starts_nothing_and_holds_no_lease(open_terminal: Open, start_echo: StartEcho) -> None:
    echo = start_echo()
    terminal = open_terminal()
    terminal.expect("Ready: starter")
    assert echo.status().status.clients == 0
    leave(terminal)


def test_ctrl_c_at_once(open_terminal: Open) -> None:
    terminal = open_terminal()
    until(lambda: os.path.exists(f"/proc/{terminal.pid}"), "it is there")
    terminal.expect("Shammah")
    leave(terminal)


class TestSince:
    def test_tells_what_was_kept(self, start_echo: StartEcho) -> None:
        echo = start_echo("--stages", "2")
        until(lambda: isinstance(echo.status().status.state, Ready), "it is ready")
        ended = run("status", "--since", "10m", "--once")
        assert ended.code == 0
        told = [line.split()[2] for line in ended.out.splitlines()]
        assert told[0] == "started"
        assert "state" in told[1:]
        assert "Loading starter: stage 1" in ended.out
        assert run("status", "--since", "0s", "--once").out == ""

    def test_that_is_no_time_is_refused(self) -> None:
        ended = run("status", "--since", "yesterday")
        assert ended.code == 2
        assert "90s, 10m, 2h" in ended.err
