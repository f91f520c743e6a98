"""What a person enters: at first as lines of the terminal, then through the editor.

The editor (prompt_toolkit) loads behind the first prompt.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shammah.errors import ShammahError
from shammah.repl.input.interrupts import Interrupts
from shammah.repl.toolbar import Part, fit
from shammah.terminal.screen import Screen
from shammah.terminal.text import printable
from shammah.terminal.tty import (
    CLEAR_LINE,
    PASTE_BEGIN,
    PASTE_ON,
    echo_off,
    echo_on,
    in_paste,
    read_paste,
    split_paste,
    wait_line,
    without_marks,
)

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

PROMPT = "> "
BLOCK = '"""'
"""Several lines between two of these are one question, as they are."""
REDRAW_S = 0.1
"""The line below changes no more often than that, however many events come."""


def in_block(text: str) -> bool:
    """Whether ``text`` begins a block that it does not end."""
    begun = text.lstrip()
    return begun.startswith(BLOCK) and not begun.rstrip().endswith(BLOCK, len(BLOCK))


def content_of_block(text: str) -> str | None:
    """What stands in the block that ``text`` is; ``None`` if it is none."""
    begun = text.strip()
    if not begun.startswith(BLOCK):
        return None
    return begun.removeprefix(BLOCK).removesuffix(BLOCK).strip("\n")


class Lines:
    """Reads one question or command after the other; nothing typed is lost or comes twice.

    Args:
        options: of the editor; ``None``: the terminal is the editor.
        live_line: what to show below the line that has been typed so far.
        show_notices: called when the editor is about to show itself for the first time.
    """

    def __init__(
        self,
        options: EditorOptions | None,
        live_line: Callable[[str], tuple[Part, ...]],
        interrupts: Interrupts,
        screen: Screen,
        show_notices: Callable[[], None],
    ) -> None:
        self._editor = Editor(live_line, options, interrupts) if options else None
        self._interrupts = interrupts
        self._screen = screen
        self._show_notices = show_notices
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
            self._show_notices()
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

    def clear(self) -> None:
        """Take the first prompt from the screen, for what comes before it."""
        os.write(1, b"\n" if self._editor is None else CLEAR_LINE)

    def refresh(self) -> None:
        """Redraw what stands below the line, from any thread."""
        if self._editor is not None:
            self._editor.refresh()

    def interject(self) -> None:
        """Show the notices above the line that is being edited, if one is; from any thread."""
        if self._editor is not None:
            self._editor.interject(self._show_notices)

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
        while in_block(line) or in_paste(line):
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


@dataclass(frozen=True, slots=True)
class EditorOptions:
    """How the editor is to be.

    ``history_file``: where lines are kept; ``None``: nowhere. ``may_store``: whether one may be.
    ``commands``: name to what it does. ``afterwards``: what else to load when it is there.
    ``report``: called with an error and a hint.
    """

    vi: bool = False
    styled: bool = True
    history_file: Path | None = None
    may_store: Callable[[str], bool] = lambda line: True
    commands: Mapping[str, str] = field(default_factory=dict)
    afterwards: Callable[[], None] = lambda: None
    report: Callable[[str, str], None] = lambda message, hint: None


class Editor:
    """Imports prompt_toolkit in the background; `ready_fd` is readable when it is there.

    Args:
        live_line: as `Lines` has it.
        interrupts: what a Ctrl-C does that is a signal and not a key.

    Attributes:
        typed_ahead: keys wait in the editor, which came before what waits in the terminal.
    """

    def __init__(
        self,
        live_line: Callable[[str], tuple[Part, ...]],
        options: EditorOptions,
        interrupts: Interrupts,
    ) -> None:
        self.ready_fd, self._done_fd = os.pipe()
        self._live_line = live_line
        self._options = options
        self._interrupts = interrupts
        self._parts: tuple[Part, ...] = ()
        self._redraw_due = False
        self._unkept: list[str] = []
        self.typed_ahead = False
        self._session: PromptSession[str] | None = None
        self._failure: Exception | None = None
        self._loaded = threading.Event()
        threading.Thread(target=self._load, name="editor", daemon=True).start()

    def _load(self) -> None:
        try:
            from shammah.repl.input import keyboard

            self._session = keyboard.open_session(
                PROMPT,
                self._options,
                edit=self._edit,
                bottom=lambda: fit(self._parts, keyboard.get_columns()),
                typed=self.refresh,
            )
        except Exception as error:  # raised where it can be shown
            self._failure = error
        self._loaded.set()
        os.write(self._done_fd, b"\0")
        self._options.afterwards()

    def read(self, begun: str = "") -> str:
        """One line (or several, pasted), with what was typed before.

        Args:
            begun: what stands in the line already.

        Raises:
            EOFError: Ctrl-D.
            KeyboardInterrupt: Ctrl-C.
        """
        self._loaded.wait()
        session = self._session
        if session is None:
            raise RuntimeError("the line editor could not be loaded") from self._failure
        for line in self._unkept:
            session.history.append_string(line)
        self._unkept.clear()
        return self._prompt_for_line(session, begun)

    def remember(self, line: str) -> None:
        """Keep a line that did not come through `read`."""
        if line.strip():
            self._unkept.append(line)

    def _prompt_for_line(self, session: PromptSession[str], begun: str) -> str:
        """A line, and no Ctrl-C in the midst of making or ending the event loop.

        There it would leave half a loop behind, whose end is a traceback on the screen. So
        prompt_toolkit is not to handle the signal: between its handler and ours there would be
        Python's for a moment.
        """
        interrupts, app = self._interrupts, session.app

        def begin() -> None:
            self._redraw_due = False
            self._parts = self._live_line(begun)
            end_if_pressed()

        def end_if_pressed() -> None:
            if interrupts.noted and app.future is not None and not app.future.done():
                app.exit(exception=KeyboardInterrupt())

        def press() -> None:
            interrupts.note()
            if app.loop is not None:
                app.loop.call_soon_threadsafe(end_if_pressed)

        try:
            with interrupts.calling(press):
                line = session.prompt(default=begun, pre_run=begin, handle_sigint=False)
        except KeyboardInterrupt:
            self._take_over_typed(session)
            raise
        if self._take_over_typed(session):
            interrupts.note()  # in the instant between Enter and now: it is for what begins now
        interrupts.check()
        # Keys may be no text in the locale's encoding, and perhaps UTF-8 all the same.
        return line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def _take_over_typed(self, session: PromptSession[str]) -> bool:
        """Keep what was typed until the terminal had its lines again; whether Ctrl-C was."""
        from shammah.repl.input.keyboard import take_over_typed

        os.write(1, PASTE_ON)  # `Lines` knows the marks
        self.typed_ahead, pressed = take_over_typed(session.app.input)
        return pressed

    def _edit(self, text: str) -> str | None:
        """What becomes of the line in the person's own editor; ``None``: that failed."""
        from shammah.terminal.external_editor import edit_text

        try:
            return edit_text(text)
        except ShammahError as error:
            self._options.report(f"{error.message} The line is unchanged.", error.hint)
            return None

    def interject(self, show: Callable[[], None]) -> None:
        """Have ``show`` write above the line that is being edited; if there is none, don't.

        From any thread; ``show`` runs on the one that reads.
        """
        session = self._session
        loop = session.app.loop if session is not None else None
        if loop is None:
            return
        from prompt_toolkit.application import run_in_terminal

        with contextlib.suppress(RuntimeError):  # the line has just been entered
            loop.call_soon_threadsafe(run_in_terminal, show)

    def refresh(self) -> None:
        """Redraw the live line soon, from any thread. A thousand calls cost little
        more than one."""
        session = self._session
        loop = session.app.loop if session is not None else None
        if loop is None or self._redraw_due:
            return
        self._redraw_due = True
        try:
            loop.call_soon_threadsafe(loop.call_later, REDRAW_S, self._redraw)
        except RuntimeError:  # the line has just been entered
            self._redraw_due = False

    def _redraw(self) -> None:
        self._redraw_due = False
        session = self._session
        if session is None:
            return
        parts = self._live_line(session.default_buffer.text)
        if parts != self._parts:  # a redraw moves the cursor
            self._parts = parts
            session.app.invalidate()
