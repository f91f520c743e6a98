"""Progress: bars on a terminal, a sentence now and then in a pipe.

Rich is imported when the first bar is drawn. The thread that reports progress draws it; there is
no timer.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from shammah.bus.training import TrainingProgress
from shammah.bus.transfers import FileTransfer, Transfer
from shammah.terminal.output import as_invoked
from shammah.terminal.screen import Screen
from shammah.terminal.text import fold, printable
from shammah.terminal.wording import (
    describe_amount,
    describe_bytes,
    describe_duration,
    describe_figures,
    describe_percent,
    describe_size,
    describe_training,
    short_name,
)

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.live import Live

FILES = 8
"""At most so many bars for files, besides those of whole downloads."""
PLAIN_STEP = 10
PLAIN_S = 60.0
"""In a pipe, a download gets a sentence every so many percent, and at least this often."""
TRAINING_S = 15.0
"""In a pipe, a training gets a sentence for each phase, and at least this often."""
LEAST_BAR = 12
"""Cells of a bar and the blanks around it, if the text leaves room."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line: text, or a bar with ``done`` of ``total`` between ``text`` and ``amount``."""

    text: str
    style: str = ""
    done: int = 0
    total: int = 0
    amount: str = ""


def draw(rows: Sequence[Row], width: int, *, colors: bool) -> Group:
    """Draw the rows on a terminal of that width, with aligned bars."""
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


@dataclass(frozen=True, slots=True)
class Report:
    """What a pipe is told of something under way.

    Attributes:
        subject: the model, of which several may be under way.
        stage: a new one is reported at once.
        sentence: empty: nothing is known yet.
        every_s: the same stage is reported again after so many seconds.
    """

    subject: str
    stage: str
    sentence: str
    every_s: float


class ProgressScreen:
    """Where progress is shown. Only one thread may call it.

    Args:
        environ: NO_COLOR and TERM are respected.
        stream: the terminal or the pipe.
        quiet: in a pipe, report no progress, only what goes wrong.
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
        self._said: dict[str, tuple[str, float]] = {}

    def show(self, rows: Callable[[int], Sequence[Row]], report: Report | None = None) -> None:
        """Show how far everything is.

        Args:
            rows: the lines for a terminal of so many rows.
            report: what has changed, for a pipe.
        """
        if self._bars:
            live = self._live = self._live or self._begin()
            width, height = live.console.size
            live.update(draw(rows(height), width, colors=self._colors), refresh=True)
        elif report is not None and report.sentence and not self.quiet:
            stage, said_s = self._said.get(report.subject, ("", 0.0))
            if stage != report.stage or self.clock() - said_s >= report.every_s:
                self._said[report.subject] = (report.stage, self.clock())
                self.say(report.sentence)

    def say(self, text: str) -> None:
        """Write a sentence that stays."""
        if self._live is None:
            self._screen.hint(text)
            return
        from rich.text import Text

        console = self._live.console
        said = fold(as_invoked(printable(text)), console.width)
        console.print(Text(said, "dim" if self._colors else ""), soft_wrap=True)

    def end(self) -> None:
        """Remove the bars."""
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
        # If this process is killed or stopped, the terminal must still have a cursor.
        live.console.show_cursor(True)
        return live


# --- downloads ----------------------------------------------------------------------------


class DownloadView:
    """Shows several downloads until they have ended."""

    def __init__(self, screen: ProgressScreen) -> None:
        self._screen = screen
        self._latest: dict[str, Transfer] = {}
        self._began_s: dict[str, float] = {}
        self.say, self.end = screen.say, screen.end

    def show(self, transfer: Transfer) -> None:
        """Show how far a download is."""
        model = transfer.model
        before = self._latest.get(model, Transfer(model))
        self._began_s.setdefault(model, self._screen.clock())
        self._latest[model] = transfer
        for notice in transfer.notices:
            if notice not in before.notices:
                self.say(f"{model}: {notice}")
        self._screen.show(self._rows, _report(transfer, first=not before.total))

    def finish(self, model: str) -> None:
        """Report that a download has ended well."""
        latest = self._latest.get(model)
        self.drop(model)
        if self._screen.quiet:
            return
        if latest is None or not latest.total:
            self.say(f"{model} is already downloaded.")
        else:
            took = describe_duration(self._screen.clock() - self._began_s[model])
            size = describe_size(latest.total)
            self.say(f"Downloaded {model}: {size} in {took}, every byte verified.")

    def drop(self, model: str) -> None:
        """Stop showing a download."""
        if self._latest.pop(model, None):
            self._screen.show(self._rows)

    def _rows(self, height: int) -> list[Row]:
        return download_rows(list(self._latest.values()), height)


def _report(now: Transfer, *, first: bool) -> Report:
    """``first``: the size was not known before."""
    model, every_s = now.model, PLAIN_S
    amount = describe_bytes(now.done, now.total, now.rate, now.eta_s)
    stage, said = now.phase, ""
    if now.detail:
        stage, said = "waiting", f"The download of {model} is waiting: {now.detail}."
    elif now.phase == "paused":
        said, every_s = f"The download of {model} is paused: {amount}.", math.inf
    elif now.total:
        stage += str(100 * now.done // now.total // PLAIN_STEP)
        said = f"{'Verifying' if now.phase == 'verifying' else 'Downloading'} {model}: {amount}."
        if first:
            here = f", {describe_size(now.done)} of them already downloaded" if now.done else ""
            files = f"{len(now.files)} file" + ("" if len(now.files) == 1 else "s")
            said = f"Downloading {model}: {describe_size(now.total)} in {files}{here}."
    return Report(model, stage, said, every_s)


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
        self.say, self.end = screen.say, screen.end

    def show(self, progress: TrainingProgress) -> None:
        """Show how far the training is."""
        # What is being done, without how much of it is.
        stage = progress.phase + re.sub(r"\d+", "", progress.detail)
        report = Report(progress.model, stage, describe_training(progress), TRAINING_S)
        self._screen.show(lambda height: [training_row(progress)], report)


def training_row(progress: TrainingProgress, indent: str = "") -> Row:
    """A bar once the number of steps is known."""
    words = progress.phase + (f" ({progress.detail})" if progress.detail else "")
    figures = describe_figures(progress)
    return Row(indent + printable(words), "", progress.step, progress.steps, figures)
