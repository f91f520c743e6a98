"""What a person enters: at first as lines of the terminal, then through the editor."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from shammah.repl.input import block
from shammah.repl.input.interrupts import Interrupts
from shammah.repl.input.line_editor import Editor
from shammah.terminal.screen import Screen
from shammah.terminal.text import printable
from shammah.terminal.tty import (
    CLEAR_LINE,
    PASTE_BEGIN,
    echo_off,
    echo_on,
    in_paste,
    read_paste,
    split_paste,
    wait_line,
    without_marks,
)

PROMPT = "> "


class Lines:
    """Reads one question or command after the other; nothing typed is lost or comes twice.

    Args:
        editor: loaded behind the first prompt; ``None``: the terminal is the editor.
        before_editor: called when the editor is about to show itself for the first time.
    """

    def __init__(
        self,
        editor: Editor | None,
        interrupts: Interrupts,
        screen: Screen,
        before_editor: Callable[[], None],
    ) -> None:
        self._editor = editor
        self._interrupts = interrupts
        self._screen = screen
        self._before_editor = before_editor
        self._first = True
        self._hidden = contextlib.ExitStack()
        self._held = ""  # taken from the terminal with what came before it

    def read(self) -> str:
        """One line, or several that belong together.

        Raises:
            EOFError: Ctrl-D, or the terminal is gone.
            KeyboardInterrupt: Ctrl-C.
        """
        first, self._first = self._first, False
        if self._editor is None:
            line = None if first else self._wait_line(wait=False)
            shown = line is None  # what was typed meanwhile was hidden
            if line is None:
                if not first:
                    self._screen.prompt(PROMPT)
                line = self._wait_line() or ""
            line = self._complete(line, shown=shown)
            if first:
                self._hide_typed()
            return line
        if first:
            line = self._wait_line(self._editor.ready_fd)
            if line is not None:
                line = self._complete(line, shown=True)
                self._hide_typed()
                return line
            self._hide_typed()
            os.write(1, CLEAR_LINE)  # the editor shows the prompt and what was typed again
            self._before_editor()
        if "\n" in self._held:
            return self._complete(self._take_held(), shown=False)
        held, self._held = self._held, ""
        line = None if held or self._editor.typed_ahead else self._wait_line(wait=False)
        if line is None:
            return self._editor.read(held)
        return self._complete(line, shown=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._hidden.close()

    def _hide_typed(self) -> None:
        """From now on what is typed is shown when it is read, and by nobody else: the terminal
        would do so in the middle of what is being written."""
        self._hidden.enter_context(echo_off())

    def _complete(self, line: str, *, shown: bool) -> str:
        """A line that the terminal has handed over, with the rest of what it begins.

        Args:
            shown: the terminal has echoed it.
        """
        pasted = PASTE_BEGIN in line
        while block.is_open(line) or in_paste(line):
            if in_paste(line) and self._editor is not None:
                pasted = True
                line, ended = self._complete_paste(line)
                if not ended:
                    return self._edit(line, shown=shown)
            else:
                further = self._further_line()
                if further is None:
                    return self._edit(f"{line}\n", shown=False)
                line = f"{line}\n{further}"
        line = without_marks(line)
        if self._editor is not None:
            self._editor.remember(line)
        if pasted and shown:
            os.write(1, CLEAR_LINE)
        if pasted or not shown:  # unreadable with the marks, or typed with the echo off
            self._screen.line(PROMPT + printable(line))
        return line

    def _complete_paste(self, line: str) -> tuple[str, bool]:
        """``line`` with the paste that it begins; whether Enter was pressed after that."""
        begun, self._held = f"{line}\n{self._held}", ""
        if in_paste(begun):
            with self._interrupts.raised():
                begun = read_paste(begun)
        pasted, typed = split_paste(begun)
        typed, enter, self._held = typed.partition("\n")
        return without_marks(pasted) + typed, bool(enter)

    def _edit(self, begun: str, *, shown: bool) -> str:
        """The line that ``begun`` becomes in the editor."""
        assert self._editor is not None
        if shown:
            os.write(1, CLEAR_LINE)
        return self._editor.read(without_marks(begun))

    def _further_line(self) -> str | None:
        if "\n" in self._held:
            return self._take_held()
        return self._wait_line(self._editor.ready_fd if self._editor else None)

    def _take_held(self) -> str:
        line, _, self._held = self._held.partition("\n")
        return line

    def _wait_line(self, other_fd: int | None = None, *, wait: bool = True) -> str | None:
        shown = echo_on() if wait and self._editor is None else contextlib.nullcontext()
        with self._interrupts.raised(), shown:
            return wait_line(other_fd, wait=wait)
