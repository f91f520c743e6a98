"""Downloads for whoever waits for them: bars on a terminal, in a pipe a sentence now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

from shammah.bus.transfers import FileTransfer, Transfer
from shammah.terminal.invocation import as_invoked
from shammah.terminal.screen import Screen
from shammah.terminal.wording import (
    describe_amount,
    describe_bytes,
    describe_duration,
    describe_percent,
    describe_size,
    printable,
    short_name,
)
from shammah.terminal.wrap import fold

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

FILES = 8
"""So many bars at most, beside those of the whole downloads."""

PLAIN_STEP = 10
PLAIN_S = 60.0
"""In a pipe, a sentence for every so many percent, and for every so many seconds."""


class PullScreen:
    """Shows several downloads until they have ended. Only one thread may call it.

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
        bars = stream.isatty() and environ.get("TERM") != "dumb"
        self._view: _View
        if bars:
            self._view = _Bars(stream, no_color=bool(environ.get("NO_COLOR")))
        else:
            self._view = _Lines(Screen(environ, stream), clock)
        self._quiet = quiet and not stream.isatty()
        self._clock = clock
        self._began: dict[str, float] = {}
        self._transfers: dict[str, Transfer] = {}
        self._notices: dict[str, tuple[str, ...]] = {}

    def progress(self, transfer: Transfer) -> None:
        """A download is so far now."""
        model = transfer.model
        self._began.setdefault(model, self._clock())
        self._transfers[model] = transfer
        known = self._notices.get(model, ())
        for notice in transfer.notices:
            if notice not in known:
                self.say(f"{model}: {notice}")
        self._notices[model] = transfer.notices
        if not self._quiet:
            self._view.show(tuple(self._transfers.values()), transfer)

    def say(self, text: str) -> None:
        """One sentence that stays."""
        self._view.say(printable(text))

    def finish(self, model: str) -> None:
        """A download has ended well."""
        transfer = self._transfers.get(model)
        self.drop(model)
        if self._quiet:
            return
        if transfer is None or not transfer.total:
            self.say(f"{model} is here already.")
        else:
            took = describe_duration(self._clock() - self._began[model])
            size = describe_size(transfer.total)
            self.say(f"{model} is here: {size} in {took}, every byte verified.")

    def drop(self, model: str) -> None:
        """Show a download no longer."""
        self._transfers.pop(model, None)
        self._view.show(tuple(self._transfers.values()), None)

    def end(self) -> None:
        """Take the bars away."""
        self._view.end()


class _View(Protocol):
    def show(self, transfers: tuple[Transfer, ...], changed: Transfer | None) -> None: ...

    def say(self, text: str) -> None: ...

    def end(self) -> None: ...


# --- in a pipe ----------------------------------------------------------------------------


@dataclass(slots=True)
class _Told:
    """What was said of one download last; ``step`` is -1 before its size is known."""

    at_s: float
    phase: str = ""
    step: int = -1
    waiting: bool = False


class _Lines:
    """Whole sentences, so few that a log stays readable."""

    def __init__(self, screen: Screen, clock: Callable[[], float]) -> None:
        self._screen = screen
        self._clock = clock
        self._told: dict[str, _Told] = {}

    def show(self, transfers: tuple[Transfer, ...], changed: Transfer | None) -> None:
        if changed is None:
            return
        told = self._told.setdefault(changed.model, _Told(self._clock()))
        sentence = self._sentence(told, changed)
        if sentence:
            told.at_s = self._clock()
            self.say(printable(sentence))

    def _sentence(self, told: _Told, now: Transfer) -> str:
        amount = describe_bytes(now.done, now.total, now.rate, now.eta_s)
        late = self._clock() - told.at_s >= PLAIN_S
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
            size = describe_size(now.total)
            return f"Downloading {now.model}: {size} in {_count(now.files)}{here}."
        verb = "Verifying" if now.phase == "verifying" else "Downloading"
        told_enough = told.step <= step and phase == now.phase and not late
        return "" if told_enough else f"{verb} {now.model}: {amount}."

    def say(self, text: str) -> None:
        self._screen.line(text)

    def end(self) -> None:
        pass


def _count(files: tuple[FileTransfer, ...]) -> str:
    return f"{len(files)} file" + ("" if len(files) == 1 else "s")


# --- on a terminal ------------------------------------------------------------------------


class _Bars:
    """A bar for each file under way, and one for each whole download."""

    def __init__(self, stream: TextIO, *, no_color: bool) -> None:
        from rich.live import Live

        from shammah.terminal.console import BoundedConsole

        self._console = BoundedConsole(file=stream, no_color=no_color, highlight=False)
        self._dim = "" if no_color else "dim"
        # Drawn when something has happened, by the thread that tells of it: no clock of its own.
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def show(self, transfers: tuple[Transfer, ...], changed: Transfer | None) -> None:
        if not self._live.is_started:
            self._live.start()
            # Whatever kills or stops this process must not leave a terminal without a cursor.
            self._console.show_cursor(True)
        width, height = self._console.size
        self._live.update(render(transfers, width, height), refresh=True)

    def say(self, text: str) -> None:
        from rich.text import Text

        said = fold(as_invoked(text), self._console.width)
        self._console.print(Text(said, self._dim), soft_wrap=True)

    def end(self) -> None:
        self._live.stop()


def render(transfers: tuple[Transfer, ...], width: int, height: int) -> Group:
    """The bars of all downloads, for a terminal of that size."""
    from rich.console import Group

    room = min(FILES, height - 2 * len(transfers) - 1)
    each = max(0, room // max(1, len(transfers)))
    rows = [[*map(_file_row, under_way(one.files)[:each]), _total_row(one)] for one in transfers]
    everything = [row for group in rows for row in group]
    names = min(max((len(name) for name, *_ in everything), default=0), width // 3)
    amounts = max((len(amount) for *_, amount in everything), default=0)
    drawn: list[RenderableType] = []
    for transfer, group in zip(transfers, rows, strict=True):
        drawn += [_table(group, names, amounts), _status(transfer)]
    return Group(*drawn)


def under_way(files: tuple[FileTransfer, ...]) -> list[FileTransfer]:
    """The files that have begun and are not in the cache yet, the largest first."""
    found = [file for file in files if file.done and not file.verified]
    return sorted(found, key=lambda file: -file.size)


_Row = tuple[str, int, int, str]
"""Name, bytes that are here, bytes in all, and these in words."""


def _file_row(file: FileTransfer) -> _Row:
    return printable(file.path), file.done, file.size, describe_amount(file.done, file.size)


def _total_row(transfer: Transfer) -> _Row:
    done, total = transfer.done, transfer.total
    return (
        printable(short_name(transfer.model)),
        done,
        total,
        describe_amount(done, total) if total else "",
    )


def _table(rows: list[_Row], names: int, amounts: int) -> RenderableType:
    """The last row is that of the whole download."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=names, no_wrap=True, overflow="ellipsis")
    table.add_column(ratio=1)
    table.add_column(width=4, justify="right", no_wrap=True)
    table.add_column(width=amounts, justify="right", no_wrap=True)
    for index, (name, done, total, amount) in enumerate(rows):
        style = "bold" if index == len(rows) - 1 else ""
        # Without a total it would pulse, in a picture that stands still.
        bar = ProgressBar(total or 1, min(done, total))
        share = describe_percent(done, total) if total else ""
        table.add_row(Text(name, style), bar, Text(share), Text(amount))
    return table


def _status(transfer: Transfer) -> RenderableType:
    from rich.text import Text

    parts = [transfer.phase]
    if transfer.detail:
        parts.append(transfer.detail)
    elif transfer.phase == "running" and transfer.rate:
        parts.append(f"{transfer.rate / 1e6:.1f} MB/s")
        if transfer.eta_s is not None:
            parts.append(f"{describe_duration(transfer.eta_s)} left")
    return Text("  " + printable(", ".join(parts)), no_wrap=True, overflow="ellipsis")
