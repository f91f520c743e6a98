"""What the REPL writes: answers on stdout as they come, everything about them dimmed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from typing import TextIO

from shammah.bus.messages import Done, Failed
from shammah.router.decision import RouteDecision
from shammah.wording import describe_answer, describe_failure, printable, styled

DIM, RED = "2", "31"


class Screen:
    """A terminal (or a pipe) as a place for answers. Only one thread may write."""

    def __init__(self, environ: Mapping[str, str], stream: TextIO = sys.stdout) -> None:
        self._environ = environ
        self._stream = stream
        self.terminal = stream.isatty()
        self._live = False

    def line(self, text: str) -> None:
        self.end_live()
        self._write(text + "\n")

    def hint(self, text: str) -> None:
        self.line(self._styled(text, DIM))

    def error(self, message: str, hint: str = "") -> None:
        self.line(self._styled(f"{message} {hint}".rstrip(), RED))

    def prompt(self, text: str) -> None:
        self._write(text)

    def live(self, text: str) -> None:
        """A line that the next output replaces."""
        if not self.terminal or self._environ.get("TERM") == "dumb":
            return
        try:
            width = os.get_terminal_size(self._stream.fileno()).columns
        except OSError:
            return
        self._write("\r\x1b[K" + self._styled(text[: width - 1], DIM))
        self._live = True

    def answer(self, piece: str) -> None:
        self.end_live()
        self._write(printable(piece))

    def end_answer(self, done: Done, decision: RouteDecision) -> None:
        self.end_live()
        self._write("\n")
        for notice in done.notices:
            self.hint(printable(notice))
        self.hint(describe_answer(done, decision))

    def end_failed(self, failure: Failed, *, partial: bool) -> None:
        self.end_live()
        if partial:
            self._write("\n")
        if failure.code == "cancelled":
            self.hint("(cancelled)")
        else:
            self.line(self._styled(describe_failure(failure), RED))

    def farewell(self, hint: str = "") -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone
            self.line("")
            if hint:
                self.hint(hint)

    def _styled(self, text: str, code: str) -> str:
        return styled(text, code, self._environ, terminal=self.terminal)

    def end_live(self) -> None:
        """Take the live line away."""
        if self._live:
            self._live = False
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
