"""How far a training is, and what all progress has in common."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from shammah.bus.training import TrainingProgress
from shammah.terminal.progress import TRAINING_S, ProgressScreen, Row, TrainingView, draw
from tests.fakes.screen import Picture

BEGUN = TrainingProgress("acme/small", "loading", "weights 1/9")
STEP = TrainingProgress("acme/small", "training", step=12, steps=60, loss=1.25, eta_s=72.0)


class Terminal(io.StringIO):
    """A stream that is a terminal, and what stands on it."""

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        super().__init__()
        self.picture = Picture(columns, rows)

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.picture.write(text)
        return super().write(text)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    found = Terminal()
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size(found.picture.size()))
    return found


class TestATrainingInAPipe:
    def test_is_a_sentence_for_each_phase_and_now_and_then(self) -> None:
        now_s, stream = 0.0, io.StringIO()
        view = TrainingView(ProgressScreen({}, stream, clock=lambda: now_s))
        for number in (1, 2, 3):
            view.show(replace(BEGUN, detail=f"weights {number}/9"))
        for number in range(5):
            view.show(replace(STEP, step=number + 1))
        now_s += TRAINING_S
        view.show(replace(STEP, step=40))
        assert stream.getvalue().splitlines() == [
            "loading small: weights 1/9",
            "training small, step 1/60, loss 1.250, 1 min 12 s left",
            "training small, step 40/60, loss 1.250, 1 min 12 s left",
        ]

    def test_is_silent_where_only_the_object_is_wanted(self) -> None:
        stream = io.StringIO()
        view = TrainingView(ProgressScreen({}, stream, quiet=True))
        view.show(STEP)
        view.say("The train worker died.")
        assert stream.getvalue() == "The train worker died.\n"


class TestOnATerminal:
    def test_a_bar_is_drawn_below_what_stays_and_taken_away(self, terminal: Terminal) -> None:
        view = TrainingView(ProgressScreen({}, terminal))
        view.show(BEGUN)
        assert terminal.picture.text.rstrip() == "loading (weights 1/9)"
        view.show(STEP)
        assert "━" in terminal.picture.text
        assert "step 12/60, loss 1.250, 1 min 12 s left" in terminal.picture.text
        view.say("Another \x1b]0;title\x07training is under way.")
        view.show(replace(STEP, step=13))
        first, bar = terminal.picture.text.split("\n")
        assert first == "Another ]0;titletraining is under way."
        assert "13/60" in bar
        view.end()
        view.say("Stopped.")
        assert terminal.picture.text.split("\n") == [first, "Stopped."]

    def test_it_has_the_size_that_the_terminal_has_then(self, terminal: Terminal) -> None:
        view = TrainingView(ProgressScreen({}, terminal))
        view.show(STEP)
        terminal.picture.resize(40, 24)
        view.show(STEP)
        assert re.fullmatch(r"training .*step 12/60.*…", terminal.picture.text)

    @pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {}])
    def test_no_color_means_none(self, terminal: Terminal, environ: dict[str, str]) -> None:
        view = TrainingView(ProgressScreen(environ, terminal))
        view.show(STEP)
        view.say("It goes on.")
        assert ("\x1b[3" in terminal.getvalue()) == ("NO_COLOR" not in environ)
        assert ("\x1b[2m" in terminal.getvalue()) == ("NO_COLOR" not in environ)

    def test_a_dumb_one_gets_sentences(self, terminal: Terminal) -> None:
        TrainingView(ProgressScreen({"TERM": "dumb"}, terminal)).show(STEP)
        assert "\x1b" not in terminal.getvalue()
        assert terminal.getvalue().startswith("training small, step 12/60")


def test_rich_is_imported_when_the_first_bar_is_drawn() -> None:
    code = (
        "import sys, io\n"
        "from shammah.terminal.progress import ProgressScreen, Report, Row\n"
        "screen = ProgressScreen({}, io.StringIO())\n"
        "screen.show(lambda height: [Row('', total=1)], Report('a', '', 'so far', 1))\n"
        "screen.say('done')\n"
        "print('rich' in sys.modules)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


@pytest.mark.parametrize("width", [1, 8, 20, 40, 79, 200])
def test_bars_are_one_below_the_other_and_fit(width: int) -> None:
    from rich.console import Console

    rows = [Row("one", "bold", 1, 2, "50%"), Row("a text"), Row("name " * 9, "", 2, 2, "done " * 9)]
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=True)
    with console.capture() as captured:
        console.print(draw(rows, width, colors=True))
    lines = captured.get().splitlines()
    assert len(lines) == 3
    assert all(len(line) <= width for line in lines)
    assert len({line.index("━") for line in lines if "━" in line}) <= 1
