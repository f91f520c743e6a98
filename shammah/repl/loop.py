"""The read-answer loop."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from shammah.bus.endpoints import open_endpoints
from shammah.bus.messages import Done, Failed, NotAvailable, Token
from shammah.config import load_settings
from shammah.conversation import Conversation, Turn
from shammah.download_news import DownloadNews
from shammah.errors import ExitCode, ShammahError
from shammah.models import check_model_name
from shammah.repl import commands
from shammah.repl.editor import Editor
from shammah.repl.options import ReplOptions, parse_options
from shammah.repl.screen import Screen
from shammah.repl.terminal import CLEAR_LINE, echo_off, pending_line, wait_line
from shammah.router.decision import RouteDecision, Target
from shammah.session import Routed, Session, Waiting
from shammah.wording import (
    describe_background,
    describe_coming,
    describe_state,
    download_under_way,
    printable,
)

PROMPT = "> "
TWICE_S = 1.0
"""Two Ctrl-C within this leave the program."""


def open_repl(arguments: list[str], *, prompt_shown: bool) -> int:
    """Everything after the prompt is on the screen. Returns the exit status."""
    screen = Screen(os.environ)
    if not prompt_shown:
        return _without_terminal(arguments)
    try:
        options = parse_options(arguments)
        settings = load_settings(os.environ, options.model, options.licence)
        check_model_name(settings.model)
        local_only = options.wish.target is Target.LOCAL
        session = Session(settings, os.environ, "repl", local_only=local_only)
    except ShammahError as error:
        os.write(1, CLEAR_LINE)
        screen.error(error.message, error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        screen.line("")
        return ExitCode.INTERRUPTED
    return Repl(session, options, screen).run()


def _without_terminal(arguments: list[str]) -> int:
    if os.isatty(0):
        why = "The prompt needs a terminal for its output."
        hint = 'Use `shammah ask "..."`, whose answer can go into a pipe or a file.'
        Screen(os.environ, sys.stderr).error(why, hint)
        return ExitCode.USAGE
    from shammah.cli import run

    return run(["ask", *arguments])


class Repl:
    """One person's conversation in one terminal."""

    def __init__(self, session: Session, options: ReplOptions, screen: Screen) -> None:
        self._session = session
        self._options = options
        self._screen = screen
        system = session.settings.system if options.system is None else options.system
        self._conversation = Conversation(system)
        self._interrupted_at = -TWICE_S
        self._news = DownloadNews(open_endpoints(os.environ), self._on_news)
        self._editor: Editor | None = None
        if os.environ.get("TERM") != "dumb":
            self._editor = Editor(PROMPT, self._live_line)

    def run(self) -> int:
        for number in (signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, _leave)
        self._session.watch(self._on_change)
        self._session.start()
        try:
            self._loop()
        except (EOFError, KeyboardInterrupt, SystemExit, OSError):
            pass  # OSError: the terminal is gone
        finally:
            download = download_under_way(self._session.view().local)
            self._session.close()
            self._news.close()
        known = self._news.transfer or download
        self._screen.farewell(describe_background(known) if download and known else "")
        return ExitCode.OK

    def _loop(self) -> None:
        read = self._read_first
        while True:
            try:
                self._show_news()
                line = read().strip()
            except KeyboardInterrupt:
                if not self._first_interrupt():
                    raise
                self._screen.hint("Ctrl-C again or Ctrl-D leaves.")
                read = self._read_line
                continue
            read = self._read_line
            if line.startswith("/"):
                commands.run(line, self._conversation, self._session, self._screen)
            elif line:
                self._ask(line)

    def _read_first(self) -> str:
        """The first line, from whichever is there first: the terminal's line or the editor."""
        line = wait_line(self._editor.ready_fd if self._editor else None)
        if line is not None:
            return line
        os.write(1, CLEAR_LINE)  # the editor shows the prompt and what was typed again
        return self._read_line()

    def _read_line(self) -> str:
        if self._editor is None:
            self._screen.prompt(PROMPT)
            return wait_line(None) or ""
        line = pending_line()
        if line is None:
            return self._editor.read()
        self._screen.line(PROMPT + printable(line))  # it was typed with the echo off
        return line

    def _first_interrupt(self) -> bool:
        now = time.monotonic()
        first = now - self._interrupted_at >= TWICE_S
        self._interrupted_at = now
        return first

    def _ask(self, question: str) -> None:
        with echo_off(), _interrupts(self._on_interrupt):
            turn = self._answer(question)
        if turn is not None:
            self._conversation.add(turn)

    def _on_interrupt(self) -> None:
        if self._first_interrupt():
            self._session.interrupt()
        else:
            raise KeyboardInterrupt

    def _answer(self, question: str) -> Turn | None:
        """Ask, show the answer as it comes, and return the turn if there was any answer."""
        text: list[str] = []
        decision: RouteDecision | None = None
        messages = self._conversation.with_question(question)
        for step in self._session.answer(messages, self._options.wish):
            match step:
                case Waiting(role, state):
                    self._screen.live(f"{role}: {describe_state(state)}")
                case Routed(decision):
                    self._screen.live(f"asking {decision.target} ...")
                case Token(reasoning=True):
                    self._screen.live("thinking ...")
                case Token(text=piece):
                    text.append(piece)
                    self._screen.answer(piece)
                case Done():
                    assert decision is not None  # Routed comes before
                    self._screen.end_answer(step, decision)
                    return Turn(question, "".join(text), step.provenance)
                case Failed():
                    self._screen.end_failed(step, partial=bool(text))
        return Turn(question, "".join(text), None, complete=False) if text else None

    def _live_line(self) -> str:
        """What is coming up, below the prompt, while there is something."""
        state = self._session.view().local
        if isinstance(state, Failed | NotAvailable) and self._session.cloud is not None:
            return ""  # told when it matters; Claude answers
        coming = describe_coming(state)
        return f"local model: {coming}" if coming else ""

    def _on_change(self) -> None:
        self._news.follow(self._session.view().local)
        if self._editor is not None:
            self._editor.refresh()

    def _on_news(self) -> None:
        if self._editor is not None:
            self._editor.interject(self._show_news)

    def _show_news(self) -> None:
        for sentence in self._news.take():
            self._screen.hint(printable(sentence))


class _interrupts:  # noqa: N801 - reads as a statement
    """Ctrl-C calls ``handler`` meanwhile, instead of raising wherever the program stands."""

    def __init__(self, handler: Callable[[], None]) -> None:
        self._handler = handler

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGINT, lambda number, frame: self._handler())

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGINT, self._before)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
