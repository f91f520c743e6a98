"""The line editor (prompt_toolkit), loaded behind the prompt."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession


class Editor:
    """Imports prompt_toolkit in the background; `ready_fd` is readable when it is there.

    Args:
        prompt: the text before the line.
        live_line: what to show below the line now; empty for no line at all.
    """

    def __init__(self, prompt: str, live_line: Callable[[], str]) -> None:
        self.ready_fd, self._done_fd = os.pipe()
        self._prompt = prompt
        self._live_line = live_line
        self._session: PromptSession[str] | None = None
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._load, name="editor", daemon=True)
        self._thread.start()

    def _load(self) -> None:
        try:
            from prompt_toolkit import PromptSession

            self._session = PromptSession(self._prompt)
        except Exception as error:  # raised where it can be shown
            self._failure = error
        os.write(self._done_fd, b"\0")

    def read(self) -> str:
        """One line (or several, pasted), with what was typed before.

        Raises:
            EOFError: Ctrl-D.
            KeyboardInterrupt: Ctrl-C.
        """
        self._thread.join()
        if self._session is None:
            raise RuntimeError("the line editor could not be loaded") from self._failure
        self.refresh()
        return self._prompt_for_line(self._session)

    def _prompt_for_line(self, session: PromptSession[str]) -> str:
        """A line, and no Ctrl-C in the midst of making or ending the event loop.

        There it would leave half a loop behind, whose end is a traceback on the screen. Until
        the editor reads keys itself, and after it, Ctrl-C is only noted.
        """
        pressed: list[None] = []

        def leave_if_pressed() -> None:
            if pressed:
                pressed.clear()
                session.app.exit(exception=KeyboardInterrupt())

        before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(None))
        try:
            line = session.prompt(pre_run=leave_if_pressed)
        finally:
            signal.signal(signal.SIGINT, before)
        if pressed:
            raise KeyboardInterrupt
        return line

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
        """Show the live line anew, from any thread; never blocks a key."""
        session = self._session
        if session is None:
            return
        # None, not "": an empty toolbar is still a line.
        line = self._live_line() or None
        if line != session.bottom_toolbar:  # the cursor blinks at every redraw
            session.bottom_toolbar = line
            session.app.invalidate()
