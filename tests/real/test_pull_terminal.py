"""``shammah models pull`` on a terminal: bars that move, end, and leave it as it was."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from tests.fakes.hub import StandInHub
from tests.fakes.terminal import CTRL_C, SEQUENCE, STYLE, Terminal
from tests.real.test_download_commands import MODEL, run
from tests.real.test_download_commands import hub as hub

Open = Callable[..., Terminal]

RATE = 150_000.0
"""6 MB take 40 s."""

COLOUR = re.compile(r"\x1b\[[0-9;]*[349][0-9][;m]")
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture
def open_pull(hub: StandInHub) -> Iterator[Open]:
    opened: list[Terminal] = []

    def make(*arguments: str, **environ: str) -> Terminal:
        opened.append(Terminal("models", "pull", *(arguments or (MODEL,)), environ=environ))
        return opened[-1]

    yield make
    for terminal in opened:
        terminal.destroy()


def last_words(terminal: Terminal) -> list[str]:
    """The lines that are left on the screen where the bars have been."""
    _, _, after = terminal.output.rpartition("\x1b[1A\x1b[2K")
    return [line for line in SEQUENCE.sub("", after).splitlines() if line.strip()]


def test_a_bar_for_the_file_and_one_for_all(hub: StandInHub, open_pull: Open) -> None:
    hub.rate = RATE
    terminal = open_pull()
    terminal.expect(r"model\.safetensors *(\x1b\[[0-9;]*m)*[━╸]")
    terminal.expect("Qwen2.5-0.5B-Instruct")
    terminal.expect(r"running, \d\.\d MB/s, \d+ s left")
    hub.rate = None
    assert terminal.end() == 0
    assert COLOUR.search(terminal.output)
    assert "config.json" not in last_frame(terminal)
    assert re.search(r"\d+% +\d\.\d of 6\.3 MB", terminal.text)
    sentence, *directory = last_words(terminal)
    assert re.fullmatch(f"Downloaded {MODEL}: 6.3 MB in \\d+ s, every byte verified.", sentence)
    assert "".join(directory).startswith("/")
    assert terminal.is_sane()
    assert terminal.output.rfind(SHOW) > terminal.output.rfind(HIDE) >= 0


def last_frame(terminal: Terminal) -> str:
    """The bars as they were drawn last."""
    return SEQUENCE.sub("", terminal.output.split("\x1b[1A\x1b[2K")[-2])


def test_a_pause_is_seen(hub: StandInHub, open_pull: Open) -> None:
    hub.rate = RATE
    terminal = open_pull()
    terminal.expect("running, ")
    run("models", "pull", "--pause", MODEL)
    terminal.expect("paused")
    run("models", "pull", "--resume", MODEL)
    terminal.expect("running, ")
    hub.rate = None
    assert terminal.end() == 0


def test_ctrl_c_takes_the_bars_away_and_says_what_goes_on(hub: StandInHub, open_pull: Open) -> None:
    hub.rate = RATE
    terminal = open_pull()
    terminal.expect("running, ")
    terminal.type(CTRL_C)
    assert terminal.end() == 130
    assert "Traceback" not in terminal.output
    words = " ".join(last_words(terminal))
    assert f"The download of {MODEL} continues in the background (" in words
    assert "━" not in words
    assert terminal.is_sane()
    assert terminal.output.rfind(SHOW) > terminal.output.rfind(HIDE)
    run("models", "pull", "--cancel", MODEL)


def test_a_damaged_file_is_told_above_the_bars_and_stays(hub: StandInHub, open_pull: Open) -> None:
    hub.fault("config.json", "corrupt", at=5)
    terminal = open_pull()
    assert terminal.end() == 0
    assert terminal.text.count(f"{MODEL}: config.json arrived damaged") == 1


def test_two_downloads_have_a_bar_each(hub: StandInHub, open_pull: Open) -> None:
    hub.names.add("acme/other")
    hub.rate = RATE
    terminal = open_pull(MODEL, "acme/other")
    for model in ("Qwen2.5-0.5B-Instruct", "other"):
        terminal.expect(model + r"[^\r]*\r\n  running, ")
    hub.rate = None
    assert terminal.end() == 0
    # Whoever is answered first comes first.
    running = r" [^\r]*\r\n  running[^\r]*\r\n[^\r]*\r\n"
    orders = (rf"Instruct{running}other ", rf"other{running}[^\r]*Instruct ")
    assert any(re.search(order, terminal.text) for order in orders), "one below the other"
    assert terminal.text.count("every byte verified.") == 2


def test_json_is_the_last_line_below_the_bars(hub: StandInHub, open_pull: Open) -> None:
    terminal = open_pull(MODEL, "--json")
    assert terminal.end() == 0
    assert '"directory": ' in terminal.text
    assert "every byte verified" in terminal.text


def test_no_color_means_none(hub: StandInHub, open_pull: Open) -> None:
    terminal = open_pull(NO_COLOR="1")
    terminal.expect("━")
    assert terminal.end() == 0
    assert not COLOUR.search(terminal.output)
    assert set(STYLE.findall(terminal.output)) <= {"\x1b[0m", "\x1b[1m"}


def test_a_dumb_terminal_gets_sentences(hub: StandInHub, open_pull: Open) -> None:
    terminal = open_pull(TERM="dumb")
    assert terminal.end() == 0
    assert "\x1b" not in terminal.output
    assert f"Downloading {MODEL}: 6.3 MB in 2 files." in terminal.text
