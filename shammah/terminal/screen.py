"""What the prompt writes: answers on stdout as they stream, and dimmed notes about them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

from shammah.bus.messages import Done, Failed
from shammah.terminal.output import as_invoked, size_of, styled, wants_style
from shammah.terminal.painter import Answer, LaidOutAnswer, Plain, RawAnswer
from shammah.terminal.text import cut, fold, printable
from shammah.terminal.wording import describe_failure

if TYPE_CHECKING:
    from shammah.terminal.markdown import Markdown

DIM, RED, BOLD = "2", "31", "1"


class Screen:
    """A terminal (or a pipe) as a place for answers. Only one thread may write.

    Attributes:
        terminal: whether it is a terminal.
        styles: whether it can show Markdown.
        markdown: whether answers are to be shown as such.
    """

    def __init__(self, environ: Mapping[str, str], stream: TextIO = sys.stdout) -> None:
        self._environ = environ
        self._stream = stream
        self.terminal = stream.isatty()
        moves = self.terminal and environ.get("TERM") != "dumb"
        self.styles = moves and wants_style(environ)
        self.markdown = True
        self._moves = moves
        self._markdown: Markdown | None = None
        self._answer: Answer | None = None
        self._thinks = False
        self._live = False

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows of the terminal."""
        return size_of(self._stream)

    @property
    def columns(self) -> int:
        """The width of the terminal."""
        return self.size[0]

    def line(self, text: str) -> None:
        self.begin_line()
        self._write((fold(text, self.columns) if self.terminal else text) + "\n")

    def hint(self, text: str) -> None:
        self.line(self._styled(as_invoked(printable(text)), DIM))

    def error(self, message: str, hint: str = "") -> None:
        said = as_invoked(printable(f"{message} {hint}".rstrip()))
        self.line(self._styled(said, RED))

    def prompt(self, text: str) -> None:
        self.begin_line()
        self._write(text)

    def live(self, text: str) -> None:
        """Show a line that the next output replaces."""
        if not self.terminal or self._environ.get("TERM") == "dumb":
            return
        self._leave_answer()
        shown = cut(printable(text), self.columns - 1)
        self._write("\r\x1b[K" + self._styled(shown, DIM))
        self._live = True

    def answer(self, piece: str) -> None:
        """Show more of an answer; the first piece begins it."""
        if self._thinks:
            self.begin_line()
        self.end_live()
        if self._answer is None:
            self._answer = self._begin_answer()
        self._answer.feed(piece)

    def thought(self, piece: str) -> None:
        """Show more of what a model thinks before its answer, under a title of its own: not every
        terminal can dim it."""
        self.end_live()
        if not self._thinks:
            if not (piece := piece.lstrip()):
                return
            self.hint("Thoughts:")
            plain = Plain(DIM) if self.styles else None
            self._answer = self._begin_answer(plain)
            self._thinks = True
        assert self._answer is not None
        self._answer.feed(piece)

    def _begin_answer(self, renderer: Plain | None = None) -> Answer:
        chosen = renderer or (self._markdown if self.markdown else None)
        if chosen is None and not self._moves:
            return RawAnswer(self._write)
        return LaidOutAnswer(chosen or Plain(), self._write, lambda: self.size)

    def load_markdown(self) -> None:
        """Import what Markdown needs, which is slow: for a thread behind the prompt. An answer
        before that is plain."""
        if self.styles and self._markdown is None:
            from shammah.terminal.markdown import Markdown

            markdown = Markdown()
            markdown.lay_out("warm *up*\n```python\nx = 1\n```", 40)
            self._markdown = markdown

    def end_answer(self, done: Done, summary: str) -> None:
        """End an answer, with ``summary`` below it: its backend, the reason, the speed."""
        self.end_live()
        cancelled = done.finish_reason == "cancelled"
        if self._answer is None and not cancelled:
            self._write("\n")
        for notice in done.notices:
            self.hint(printable(notice))
        if done.usage.output_tokens or not cancelled:
            self.hint(summary)
        if cancelled:
            self.hint("(cancelled)")

    def end_failed(self, failure: Failed) -> None:
        if failure.code == "cancelled":
            self.hint("(cancelled)")
        else:
            self.line(self._styled(describe_failure(failure), RED))

    def farewell(self, *hints: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone
            self.line("")
            for hint in hints:
                self.hint(hint)

    def emphasized(self, text: str) -> str:
        """Return ``text`` in bold."""
        return self._styled(text, BOLD)

    def _styled(self, text: str, code: str) -> str:
        return styled(text, code, self._environ, terminal=self.terminal)

    def end_live(self) -> None:
        """Remove the live line."""
        if self._live:
            self._live = False
            self._write("\r\x1b[K")

    def begin_line(self) -> None:
        """End what is being shown, if anything is."""
        self.end_live()
        self._leave_answer()

    def _leave_answer(self) -> None:
        """Show the rest of an answer, if there is one; the next piece begins another."""
        answer, self._answer, self._thinks = self._answer, None, False
        if answer is not None:
            answer.finish()
            self._write("\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
