"""The live view of ``shammah status``: what it shows in how much room, and how often."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from shammah.bus.endpoints import ROLES
from shammah.bus.messages import Downloading, Event, Failed, Loading, Ready, State, Status
from shammah.bus.training import Training, TrainingProgress
from shammah.bus.transfers import Transfer, Transferring
from shammah.cli.status_board import KEPT, Board, Resources
from shammah.terminal.progress import draw

NOW = 1_000_000.0
COMING = Downloading("Qwen/Qwen2.5-7B", 41, 100, 5e6, 12.0)


def event(seq: int, state: State, what: str = "state", run: str = "a", **more: int) -> Event:
    return Event("inference", run, seq, 0.0, NOW + seq, what, Status(state, **more))


def drawn(board: Board, width: int, height: int, *, colors: bool = False) -> list[str]:
    rows = board.rows(height, NOW + 60, {"inference": Resources(2**30, 50.0)}, "1.0 GB free")
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, no_color=not colors, force_terminal=colors, legacy_windows=False
    )
    console.print(draw(rows, width, colors=colors))
    return stream.getvalue().splitlines()


def busy() -> Board:
    board = Board(ROLES)
    board.take("inference", event(1, Ready("starter", fallback=True, successor=COMING)), NOW)
    transfers = tuple(Transfer(f"acme/model-{n}", "main", "running", n, 10) for n in range(3))
    board.take("download", event(2, Transferring(transfers)), NOW)
    board.take("cloud", event(3, Failed("x", "The key was rejected. " * 9)), NOW)
    for seq in range(4, 40):
        board.take("inference", event(seq, Loading("m", "weights", 1, 4), "accepted"), NOW)
    return board


def test_every_role_its_bar_and_its_facts_are_there() -> None:
    board = Board(ROLES)
    state = Ready("starter", successor=COMING)
    board.take("inference", event(1, state, "attached", clients=2, active=1, tokens=9), NOW)
    lines = drawn(board, 100, 30)
    assert "1 of 6 workers · 1.0 GB free" in lines[0]
    (state_line,) = [line for line in lines if "Ready: starter" in line and "inf" in line[:4]]
    assert "fetching Qwen2.5-7B" in state_line
    facts = "2 attached · 1 active or waiting · 9 tokens · 1.1 GB · 50% cpu · up 59 s"
    assert facts in lines[lines.index(state_line) + 1]
    assert "━" in lines[lines.index(state_line) + 2]
    assert "41%" in lines[lines.index(state_line) + 2]
    assert sum("not running" in line for line in lines) == len(ROLES) - 1
    assert any("inference  attached" in line for line in lines)


def test_a_training_has_a_bar() -> None:
    board = Board(ROLES)
    progress = TrainingProgress("acme/small", "paused", "a question is being answered")
    board.take("train", event(1, Training(progress)), NOW)
    assert any("train      paused small: a question" in line for line in drawn(board, 120, 30))
    progress = replace(progress, phase="training", detail="", step=15, steps=60, loss=1.25)
    board.take("train", event(2, Training(progress)), NOW)
    lines = drawn(board, 120, 30)
    at = next(n for n, line in enumerate(lines) if line.startswith("train      Training small"))
    bar = lines[at + 2]
    assert "training" in bar
    assert "━" in bar
    assert "step 15/60, loss 1.250" in bar
    board.take("train", event(3, Training()), NOW)
    assert any(line == "train      No training" for line in drawn(board, 120, 30))


@pytest.mark.parametrize(("width", "height"), [(200, 50), (80, 24), (40, 10), (20, 5), (5, 1)])
def test_it_fits_the_terminal(width: int, height: int) -> None:
    lines = drawn(busy(), width, height)
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)
    if height > len(ROLES):
        for role in ROLES:
            assert any(line.startswith(role[: width - 1]) for line in lines)


def test_without_colours_there_is_no_escape_code() -> None:
    board = Board(ROLES)
    board.take("inference", event(1, Ready("starter")), NOW)
    lines = drawn(board, 80, 24, colors=False)
    assert not any("\x1b" in line for line in lines)
    assert any("\x1b[32m" in line for line in drawn(board, 80, 24, colors=True))


def test_an_escape_code_of_a_worker_is_not_obeyed() -> None:
    board = Board(ROLES)
    board.take("inference", event(1, Ready("sta\x1b[2Jrter")), NOW)
    assert not any("\x1b" in line for line in drawn(board, 80, 24))


def test_a_worker_that_goes_and_comes_is_remembered() -> None:
    board = Board(ROLES)
    board.take("inference", event(7, Ready("starter")), NOW)
    board.take("inference", None, NOW + 8)
    assert sum("not running" in line for line in drawn(board, 80, 24)) == len(ROLES)
    board.take("inference", event(1, Ready("other"), run="b"), NOW)
    lines = drawn(board, 80, 24)
    assert any(line.startswith("inference  Ready: other") for line in lines)
    assert any("inference  gone" in line for line in lines)


def test_what_a_worker_kept_does_not_hide_what_it_says_now() -> None:
    board = Board(ROLES)
    board.take("inference", event(9, Ready("new")), NOW)
    board.take("inference", event(2, Loading("new", "weights", 0, 3), "started"), NOW)
    lines = drawn(board, 80, 24)
    assert any(line.startswith("inference  Ready: new") for line in lines)
    told = [line for line in lines if line[:2].isdigit()]
    assert [("started" in line) for line in told] == [False, True]  # the newest comes first


def test_a_flood_of_one_kind_is_one_line_and_of_many_kinds_is_bounded() -> None:
    board = Board(ROLES)
    for seq in range(1, 5000):
        board.take("inference", event(seq, Ready("starter")), NOW)
    assert any("(4999 times)" in line for line in drawn(board, 80, 24))
    for seq in range(5000, 9000):
        board.take("inference", event(seq, Ready("starter"), "accepted"), NOW)
    assert len(board.rows(10_000, NOW, {})) < KEPT + 20


def test_tokens_a_second_are_those_of_late() -> None:
    board = Board(ROLES)
    for seq in (1, 2, 3):
        board.take("inference", event(seq, Ready("starter"), "stop", tokens=20 * seq), NOW)
    assert board.tokens_per_second("inference", NOW + 4) == 20.0
    assert board.tokens_per_second("inference", NOW + 60) == 0.0
    assert board.tokens_per_second("cloud", NOW) == 0.0


# --- how often ----------------------------------------------------------------------------


def test_two_roles_that_take_turns_are_two_lines() -> None:
    board = Board(ROLES)
    for seq in range(1, 21):
        role = ("inference", "download")[seq % 2]
        board.take(role, event(seq, Ready("starter", successor=COMING)), NOW)
    assert sum("(10 times)" in line for line in drawn(board, 80, 24)) == 2
