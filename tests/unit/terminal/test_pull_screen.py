"""What a person sees of a download: sentences in a pipe, bars on a terminal."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from shammah.bus.transfers import FileTransfer, Transfer
from shammah.terminal.progress import (
    FILES,
    PLAIN_S,
    DownloadView,
    ProgressScreen,
    download_rows,
    draw,
)

MODEL = "Qwen/Qwen2.5-1.5B-Instruct"
GB, MB = 10**9, 10**6


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Piped:
    """A screen in a pipe, and what was written."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.clock = Clock()
        self._stream = io.StringIO()
        screen = ProgressScreen({}, self._stream, quiet=quiet, clock=self.clock)
        self.screen = DownloadView(screen)

    @property
    def lines(self) -> list[str]:
        return self._stream.getvalue().splitlines()

    def show(self, *percents: int, **changes: object) -> None:
        for percent in percents:
            self.screen.show(at(percent, **changes))


def at(percent: int, **changes: object) -> Transfer:
    """3 GB, of which so much is here."""
    done = 3 * GB * percent // 100
    file = FileTransfer("model.safetensors", 3 * GB, done, False)
    transfer = Transfer(MODEL, "c" * 40, "running", done, 3 * GB, 24e6, 72.0, (file,))
    return replace(transfer, **changes)  # type: ignore[arg-type]


class TestInAPipe:
    def test_a_download_is_a_dozen_sentences(self) -> None:
        piped = Piped()
        piped.screen.show(Transfer(MODEL))
        piped.show(*range(101))
        piped.clock.now_s += 125
        piped.screen.finish(MODEL)
        assert piped.lines[0] == f"Downloading {MODEL}: 3.0 GB in 1 file."
        assert piped.lines[1] == (
            f"Downloading {MODEL}: 10%, 0.3 of 3.0 GB, 24.0 MB/s, 1 min 12 s left."
        )
        assert piped.lines[-1] == f"Downloaded {MODEL}: 3.0 GB in 2 min 5 s, every byte verified."
        assert len(piped.lines) == 12
        assert all(line.endswith(".") and "\x1b" not in line for line in piped.lines)

    def test_what_an_earlier_download_left_is_said(self) -> None:
        piped = Piped()
        piped.show(30)
        assert piped.lines == [
            f"Downloading {MODEL}: 3.0 GB in 1 file, 900.0 MB of them already downloaded."
        ]

    def test_a_slow_download_is_heard_of_every_minute(self) -> None:
        piped = Piped()
        piped.show(0, 1, 2)
        assert len(piped.lines) == 1
        piped.clock.now_s += PLAIN_S
        piped.show(2, 2)
        assert [line.split(",")[0] for line in piped.lines[1:]] == [f"Downloading {MODEL}: 2%"]

    def test_a_pause_and_its_end_are_said_once(self) -> None:
        piped = Piped()
        piped.show(11)
        piped.show(12, 12, phase="paused", rate=0.0, eta_s=None)
        piped.clock.now_s += 10 * PLAIN_S
        piped.show(12, phase="paused", rate=0.0, eta_s=None)
        piped.show(13, 13)
        assert piped.lines[1:] == [
            f"The download of {MODEL} is paused: 12%, 0.4 of 3.0 GB.",
            f"Downloading {MODEL}: 13%, 0.4 of 3.0 GB, 24.0 MB/s, 1 min 12 s left.",
        ]

    def test_the_check_at_the_end_is_said(self) -> None:
        piped = Piped()
        piped.show(99)
        piped.show(100, 100, phase="verifying", rate=0.0, eta_s=0.0)
        assert piped.lines[1:] == [f"Verifying {MODEL}: 100%, 3.0 of 3.0 GB."]

    def test_what_it_waits_for_is_said_once_for_each_silence(self) -> None:
        piped = Piped()
        piped.show(0)
        for attempt in (3, 4, 5):
            piped.show(1, detail=f"http://hub: HTTP 503; attempt {attempt} of 8 in 4 s")
        piped.show(2)
        piped.show(2, detail="no data for 3 s")
        assert piped.lines[1:] == [
            f"The download of {MODEL} is waiting: http://hub: HTTP 503; attempt 3 of 8 in 4 s.",
            f"Downloading {MODEL}: 2%, 0.1 of 3.0 GB, 24.0 MB/s, 1 min 12 s left.",
            f"The download of {MODEL} is waiting: no data for 3 s.",
        ]

    def test_a_silence_is_said_before_anything_is_known(self) -> None:
        piped = Piped()
        piped.screen.show(Transfer(MODEL, detail="http://hub answers HTTP 503"))
        assert piped.lines == [f"The download of {MODEL} is waiting: http://hub answers HTTP 503."]

    def test_each_notice_is_said_once(self) -> None:
        piped = Piped()
        piped.show(1, 2, 3, notices=("a was bad.",))
        piped.show(4, 5, notices=("a was bad.", "b was bad."))
        assert [line for line in piped.lines if "bad" in line] == [
            f"{MODEL}: a was bad.",
            f"{MODEL}: b was bad.",
        ]

    def test_what_was_here_before_is_said_to_be(self) -> None:
        piped = Piped()
        piped.screen.show(Transfer(MODEL))
        piped.screen.finish(MODEL)
        assert piped.lines == [f"{MODEL} is already downloaded."]

    def test_two_downloads_have_their_sentences_each(self) -> None:
        piped = Piped()
        for percent in (0, 15):
            piped.show(percent)
            piped.show(percent, model="acme/other")
        assert [line.split(":")[0] for line in piped.lines] == [
            f"Downloading {MODEL}",
            "Downloading acme/other",
        ] * 2

    def test_no_progress_is_said_where_only_the_object_is_wanted(self) -> None:
        piped = Piped(quiet=True)
        piped.show(0, 50, notices=("a was bad.",))
        piped.screen.say("The download worker died.")
        piped.screen.finish(MODEL)
        assert piped.lines == [f"{MODEL}: a was bad.", "The download worker died."]

    def test_a_hub_cannot_steer_the_terminal(self) -> None:
        piped = Piped()
        piped.show(1, notices=("\x1b]0;title\x07",), detail="\x1b[31mred")
        assert "\x1b" not in "".join(piped.lines)


# --- bars ---------------------------------------------------------------------------------


def drawn(*transfers: Transfer, width: int = 80, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(draw(download_rows(transfers, height), width, colors=True))
    return captured.get().splitlines()


def file(path: str, size: int, done: int, *, verified: bool = False) -> FileTransfer:
    return FileTransfer(path, size, done, verified)


class TestBars:
    def test_one_for_each_file_under_way_and_one_for_all(self) -> None:
        files = (
            file("config.json", 700, 700, verified=True),
            file("tokenizer.json", 7 * MB, 3 * MB),
            file("model.safetensors", 3 * GB, GB),
            file("vocab.json", MB, 0),
        )
        lines = drawn(at(41, files=files))
        assert len(lines) == 4
        for line, words in zip(
            lines,
            (
                ("model.safetensors", "33%", "1.0 of 3.0 GB"),
                ("tokenizer.json", "42%", "3.0 of 7.0 MB"),
                ("Qwen2.5-1.5B-Instruct", "41%", "1.2 of 3.0 GB"),
                ("  running, 24.0 MB/s, 1 min 12 s left",),
            ),
            strict=True,
        ):
            assert all(word in line for word in words), line
        assert all("━" in line for line in lines[:3])

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"phase": "paused", "rate": 0.0, "eta_s": None}, "  paused"),
            ({"phase": "verifying", "eta_s": 0.0}, "  verifying"),
            ({"detail": "no data for 7 s"}, "  running, no data for 7 s"),
            ({"eta_s": None}, "  running, 24.0 MB/s"),
        ],
    )
    def test_the_state_is_in_the_last_line(self, changes: dict[str, object], words: str) -> None:
        assert drawn(at(41, **changes))[-1].rstrip() == words

    def test_nothing_is_known_yet(self) -> None:
        lines = drawn(Transfer(MODEL))
        assert "%" not in lines[0]
        assert lines[1].rstrip() == "  waiting"

    def test_the_largest_of_many_files_are_shown(self) -> None:
        files = tuple(file(f"part-{n:02}", n * MB, MB // 2) for n in range(1, 31))
        lines = drawn(at(41, files=files))
        assert len(lines) == FILES + 2
        assert "part-30" in lines[0]

    @pytest.mark.parametrize("height", [4, 5, 8, 24])
    @pytest.mark.parametrize("count", [1, 3])
    @pytest.mark.parametrize("width", [20, 40, 80, 200])
    def test_they_fit_the_terminal(self, width: int, height: int, count: int) -> None:
        files = tuple(file(f"model-{n:05}-of-00030.safetensors", n * GB, MB) for n in range(1, 31))
        transfers = [at(41, model=f"acme/model-{n}", files=files) for n in range(count)]
        lines = drawn(*transfers, width=width, height=height)
        assert all(len(line) <= width for line in lines)
        assert len(lines) <= max(height - 1, 2 * count)

    def test_two_downloads_are_one_below_the_other(self) -> None:
        lines = drawn(at(41), at(52, model="acme/other"))
        assert [line.split()[0] for line in lines] == [
            "model.safetensors",
            "Qwen2.5-1.5B-Instruct",
            "running,",
            "model.safetensors",
            "other",
            "running,",
        ]
        assert len({line.index("━") for line in lines if "━" in line}) == 1

    def test_a_hub_cannot_steer_them(self) -> None:
        path = "\x1b]0;title\x07\x1b[31m[bold red]x.json"
        lines = drawn(at(41, model="acme/\x9b31m", files=(file(path, MB, 5),)), width=200)
        assert "\x1b" not in "".join(lines)
        assert "\x9b" not in "".join(lines)
        assert "[bold red]x.json" in lines[0]
