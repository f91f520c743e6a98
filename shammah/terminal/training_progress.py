"""A training for whoever waits for it: a bar on a terminal, in a pipe a sentence now and then."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TextIO

from shammah.bus.training import TrainingProgress
from shammah.terminal.invocation import as_invoked
from shammah.terminal.screen import Screen
from shammah.terminal.wording import describe_duration, describe_training, printable
from shammah.terminal.wrap import fold

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_S = 15.0
"""In a pipe, a sentence whenever the phase changes, and every so many seconds."""


class TrainingScreen:
    """Shows one training. Only one thread may call it.

    Args:
        environ: NO_COLOR and TERM are respected.
        stream: the terminal or the pipe.
        quiet: tell no progress in a pipe.
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
        terminal = stream.isatty()
        self._bar = terminal and environ.get("TERM") != "dumb"
        self._no_color = bool(environ.get("NO_COLOR"))
        self._quiet = quiet and not terminal
        self._stream = stream
        self._screen = Screen(environ, stream)
        self._clock = clock
        self._said = ("", "", -PLAIN_S)
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def show(self, progress: TrainingProgress) -> None:
        """It is so far now."""
        if self._bar:
            self._show_bar(progress)
        elif not self._quiet:
            *before, at_s = self._said
            changed = [progress.phase, _uncounted(progress.detail)] != before
            now = self._clock()
            if changed or now - at_s >= PLAIN_S:
                self._said = (progress.phase, _uncounted(progress.detail), now)
                self._screen.line(describe_training(progress))

    def say(self, text: str) -> None:
        """One sentence that stays."""
        if self._progress is not None:
            console = self._progress.console
            said = fold(as_invoked(printable(text)), console.width)
            console.print(said, markup=False, highlight=False, soft_wrap=True)
        else:
            self._screen.line(printable(text))

    def end(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None

    def _show_bar(self, progress: TrainingProgress) -> None:
        if self._progress is None:
            self._progress = self._open()
            self._task = self._progress.add_task("", total=None, facts="")
        assert self._task is not None
        words = progress.phase + (f" ({progress.detail})" if progress.detail else "")
        self._progress.update(
            self._task,
            description=printable(words),
            completed=progress.step,
            total=progress.steps or None,
            facts=_facts(progress),
        )

    def _open(self) -> Progress:
        from rich.progress import BarColumn, Progress, TextColumn

        from shammah.terminal.console import BoundedConsole

        progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}", markup=False),
            console=BoundedConsole(file=self._stream, no_color=self._no_color or None),
            transient=True,
        )
        progress.start()
        return progress


def _uncounted(detail: str) -> str:
    """What is being done, without how much of it is."""
    return re.sub(r"\d+", "", detail)


def _facts(progress: TrainingProgress) -> str:
    parts = [f"{progress.step}/{progress.steps}"] if progress.steps else []
    parts += [f"loss {progress.loss:.3f}"] if progress.loss is not None else []
    if progress.held_out_loss is not None:
        parts.append(f"held-out {progress.held_out_loss:.3f}")
    parts += [f"{progress.tokens_per_second:,.0f} tok/s"] if progress.tokens_per_second else []
    if progress.eta_s is not None:
        parts.append(f"{describe_duration(progress.eta_s)} left")
    return ", ".join(parts)
