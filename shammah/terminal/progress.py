"""How far something is: bars on a terminal, in a pipe a sentence now and then.

Rich is imported when the first bar is drawn. Nothing is drawn but when something has happened,
by the thread that tells of it: no clock of its own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from shammah.bus.training import TrainingProgress
from shammah.bus.transfers import FileTransfer, Transfer
from shammah.terminal.invocation import as_invoked
from shammah.terminal.screen import Screen
from shammah.terminal.wording import (
    describe_amount,
    describe_bytes,
    describe_duration,
    describe_figures,
    describe_percent,
    describe_size,
    describe_training,
    printable,
    short_name,
)
from shammah.terminal.wrap import fold

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.live import Live

FILES = 8
"""So many bars at most, beside those of the whole downloads."""

PLAIN_STEP = 10
PLAIN_S = 60.0
"""In a pipe, a sentence for every so many percent of a download, and for every so many seconds."""
TRAINING_S = 15.0
"""In a pipe, a sentence for every phase of a training, and for every so many seconds."""


LEAST_BAR = 12
"""Cells of a bar and the blanks beside it, where the words leave it some."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line: text, or a bar with ``done`` of ``total`` between ``text`` and ``amount``."""

    text: str
    style: str = ""
    done: int = 0
    total: int = 0
    amount: str = ""


def draw(rows: Sequence[Row], width: int, *, colors: bool) -> Group:
    """The rows on a terminal of that width, their bars one below the other."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    bars = [row for row in rows if row.total]
    texts = min(max((len(row.text) for row in bars), default=0), width // 3)
    amounts = max((len(row.amount) for row in bars), default=0)
    amounts = min(amounts, max(width * 2 // 3, width - texts - LEAST_BAR))
    drawn: list[RenderableType] = []
    for row in rows:
        style = row.style if colors or row.style == "bold" else ""
        if not row.total:
            drawn.append(Text(row.text, style, no_wrap=True, overflow="ellipsis"))
            continue
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(width=texts, no_wrap=True, overflow="ellipsis")
        table.add_column(ratio=1)
        table.add_column(width=amounts, no_wrap=True, overflow="ellipsis")
        bar = ProgressBar(row.total, min(row.done, row.total))
        table.add_row(Text(row.text, style), bar, Text(row.amount))
        drawn.append(table)
    return Group(*drawn)


class ProgressScreen:
    """Where progress is shown. Only one thread may call it.

    Args:
        environ: NO_COLOR and TERM are respected.
        stream: the terminal or the pipe.
        quiet: tell no progress in a pipe, only what went otherwise than it should.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        stream: TextIO,
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.quiet = quiet and not stream.isatty()
        self.clock = clock
        self._bars = stream.isatty() and environ.get("TERM") != "dumb"
        self._colors = not environ.get("NO_COLOR")
        self._screen = Screen(environ, stream)
        self._stream = stream
        self._live: Live | None = None

    def show(self, rows: Callable[[int, int], Sequence[Row]], sentence: Callable[[], str]) -> None:
        """It is so far now.

        Args:
            rows: the lines for a terminal of so many columns and rows.
            sentence: what to say in a pipe; empty: nothing yet.
        """
        if self._bars:
            live = self._live = self._live or self._begin()
            width, height = live.console.size
            live.update(draw(rows(width, height), width, colors=self._colors), refresh=True)
        elif not self.quiet and (said := sentence()):
            self.say(said)

    def say(self, text: str) -> None:
        """One sentence that stays."""
        if self._live is None:
            self._screen.hint(text)
            return
        from rich.text import Text

        console = self._live.console
        said = fold(as_invoked(printable(text)), console.width)
        console.print(Text(said, "dim" if self._colors else ""), soft_wrap=True)

    def end(self) -> None:
        """Take the bars away."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _begin(self) -> Live:
        from rich.live import Live

        from shammah.terminal.console import BoundedConsole

        live = Live(
            console=BoundedConsole(file=self._stream, no_color=not self._colors, highlight=False),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        live.start()
        # Whatever kills or stops this process must not leave a terminal without a cursor.
        live.console.show_cursor(True)
        return live


# --- downloads ----------------------------------------------------------------------------


@dataclass(slots=True)
class _Download:
    """One, and what was said of it last in a pipe; ``step`` is -1 before its size is known."""

    latest: Transfer
    began_s: float
    said_s: float
    phase: str = ""
    step: int = -1
    waiting: bool = False


class DownloadView:
    """Shows several downloads until they have ended."""

    def __init__(self, screen: ProgressScreen) -> None:
        self._screen = screen
        self._downloads: dict[str, _Download] = {}
        self.say, self.end = screen.say, screen.end

    def show(self, transfer: Transfer) -> None:
        """A download is so far now."""
        model, now_s = transfer.model, self._screen.clock()
        one = self._downloads.setdefault(model, _Download(Transfer(model), now_s, now_s))
        known, one.latest = one.latest.notices, transfer
        for notice in transfer.notices:
            if notice not in known:
                self.say(f"{model}: {notice}")
        self._screen.show(self._rows, lambda: self._sentence(one))

    def finish(self, model: str) -> None:
        """A download has ended well."""
        one = self._downloads.get(model)
        self.drop(model)
        if self._screen.quiet:
            return
        if one is None or not one.latest.total:
            self.say(f"{model} is here already.")
        else:
            took = describe_duration(self._screen.clock() - one.began_s)
            size = describe_size(one.latest.total)
            self.say(f"{model} is here: {size} in {took}, every byte verified.")

    def drop(self, model: str) -> None:
        """Show a download no longer."""
        if self._downloads.pop(model, None):
            self._screen.show(self._rows, str)

    def _rows(self, width: int, height: int) -> list[Row]:
        return download_rows([one.latest for one in self._downloads.values()], height)

    def _sentence(self, one: _Download) -> str:
        now_s = self._screen.clock()
        said = _next_sentence(one, late=now_s - one.said_s >= PLAIN_S)
        one.said_s = now_s if said else one.said_s
        return said


def _next_sentence(told: _Download, *, late: bool) -> str:
    now = told.latest
    amount = describe_bytes(now.done, now.total, now.rate, now.eta_s)
    waited, told.waiting = told.waiting, bool(now.detail)
    phase, told.phase = told.phase, now.phase
    if now.detail:
        said = f"The download of {now.model} waits: {now.detail}."
        return said if late or not waited else ""
    if now.phase == "paused":
        return f"The download of {now.model} is paused: {amount}." if phase != "paused" else ""
    if not now.total:
        return ""
    step, told.step = told.step, 100 * now.done // now.total // PLAIN_STEP
    if step < 0:
        here = f", {describe_size(now.done)} of them here already" if now.done else ""
        files = f"{len(now.files)} file" + ("" if len(now.files) == 1 else "s")
        return f"Downloading {now.model}: {describe_size(now.total)} in {files}{here}."
    verb = "Verifying" if now.phase == "verifying" else "Downloading"
    told_enough = told.step <= step and phase == now.phase and not late
    return "" if told_enough else f"{verb} {now.model}: {amount}."


def download_rows(transfers: Sequence[Transfer], height: int) -> list[Row]:
    """A bar for each file under way, the largest first, and one for each whole download, with
    its state below; on a terminal of so many rows."""
    room = min(FILES, height - 2 * len(transfers) - 1)
    each = max(0, room // max(1, len(transfers)))
    shown = [_under_way(one.files)[:each] for one in transfers]
    amounts = [describe_amount(file.done, file.size) for files in shown for file in files]
    amounts += [describe_amount(one.done, one.total) for one in transfers if one.total]
    widest = max(map(len, amounts), default=0)

    def bar(name: str, style: str, done: int, total: int) -> Row:
        share = f"{describe_percent(done, total):>4} " if total else ""
        amount = f"{describe_amount(done, total):>{widest}}" if total else ""
        return Row(printable(name), style, done, total, share + amount)

    rows: list[Row] = []
    for one, files in zip(transfers, shown, strict=True):
        rows += [bar(file.path, "", file.done, file.size) for file in files]
        rows += [bar(short_name(one.model), "bold", one.done, one.total), _state_row(one)]
    return rows


def _under_way(files: tuple[FileTransfer, ...]) -> list[FileTransfer]:
    """The files that have begun and are not in the cache yet, the largest first."""
    found = [file for file in files if file.done and not file.verified]
    return sorted(found, key=lambda file: -file.size)


def _state_row(transfer: Transfer) -> Row:
    parts = [transfer.phase]
    if transfer.detail:
        parts.append(transfer.detail)
    elif transfer.phase == "running" and transfer.rate:
        parts.append(f"{transfer.rate / 1e6:.1f} MB/s")
        if transfer.eta_s is not None:
            parts.append(f"{describe_duration(transfer.eta_s)} left")
    return Row("  " + printable(", ".join(parts)))


# --- a training ---------------------------------------------------------------------------


class TrainingView:
    """Shows one training."""

    def __init__(self, screen: ProgressScreen) -> None:
        self._screen = screen
        self._told = ("", "")
        self._told_s = 0.0
        self.say, self.end = screen.say, screen.end

    def show(self, progress: TrainingProgress) -> None:
        """It is so far now."""
        row = training_row(progress)
        self._screen.show(lambda width, height: [row], lambda: self._sentence(progress))

    def _sentence(self, progress: TrainingProgress) -> str:
        # What is being done, without how much of it is.
        now, now_s = (progress.phase, re.sub(r"\d+", "", progress.detail)), self._screen.clock()
        if now == self._told and now_s - self._told_s < TRAINING_S:
            return ""
        self._told, self._told_s = now, now_s
        return describe_training(progress)


def training_row(progress: TrainingProgress, indent: str = "") -> Row:
    """A bar once the number of steps is known."""
    words = progress.phase + (f" ({progress.detail})" if progress.detail else "")
    figures = describe_figures(progress)
    return Row(indent + printable(words), "", progress.step, progress.steps, figures)
