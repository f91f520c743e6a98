"""``shammah ask``: one question, one answer, made for pipes.

The answer goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict

from shammah.bus.messages import Done, Failed, PromptProgress, Token
from shammah.chat.attachments import compose, decode_text, read_attachment, read_input
from shammah.chat.conversation import Conversation, Prompt, Step, Turn, TurnInProgress, Waiting
from shammah.chat.options import ReplOptions
from shammah.chat.runner import TurnRunner
from shammah.chat.session import CANCELLED, Session
from shammah.chat.summary import describe_answer, describe_empty
from shammah.cli.termination import TerminatedError, raising_terminated
from shammah.errors import ExitCode
from shammah.history.listing import describe_resumed
from shammah.history.recorder import Recorder, history_of
from shammah.history.resuming import read_conversation, resume_conversation
from shammah.router.decision import RouteDecision, Target
from shammah.router.explanation import as_document
from shammah.settings.model import Settings
from shammah.supervision.secrets import take_secrets
from shammah.terminal.confirm import ask as asking
from shammah.terminal.output import echo, size_of
from shammah.terminal.painter import Answer, LaidOutAnswer, Plain, RawAnswer
from shammah.terminal.screen import Screen
from shammah.terminal.text import printable
from shammah.terminal.tty import take_terminal
from shammah.terminal.wording import describe_background, describe_failure, download_under_way

PROGRESS_S = 5.0
"""Seconds between two lines in a log about the progress of a prompt."""

Sources = tuple[str | None, ...]
"""Absolute paths that a question came from; ``None``: unknown."""


def read_question(
    words: str | None, files: tuple[str, ...], *, piped: bool = True
) -> tuple[str, Sources]:
    """Return the question (the words, the files and piped input) and where it came from.

    Args:
        files: paths; ``-`` is standard input, of any kind.
        piped: read standard input as `read_input` does.

    Raises:
        ShammahError: a file or pipe cannot be read, is too long or not text.
    """
    report = Screen(os.environ, sys.stderr).hint
    words, no_text = decode_text((words or "").encode("utf-8", "surrogateescape"), "The question")
    brought = [read_attachment(file, report) for file in files if file != "-"]
    attachments = list(brought)
    given = None
    if piped or "-" in files:
        asked = bool(brought or words.strip())
        given = read_input(report, asked=asked, wanted="-" in files)
        brought += [given] if given else []
    replaced = {"The question": no_text} | {one.name: one.replaced for one in brought}
    for name, count in replaced.items():
        if count:
            amount, verb = ("1 byte", "is") if count == 1 else (f"{count} bytes", "are")
            echo(f"{name} contains {amount} that {verb} not UTF-8.", err=True)
    sources = tuple(source for one in brought for source in one.sources)
    return compose(words, attachments, given), sources


def ask(
    settings: Settings, prompt: Prompt, options: ReplOptions, *, as_json: bool, stream: bool
) -> int:
    """Answer and return the exit status."""
    environ = take_secrets(os.environ)
    session = Session(settings, environ, "ask", local_only=prompt.override.target is Target.LOCAL)
    try:
        signal.signal(signal.SIGINT, lambda number, frame: session.interrupt())
        with raising_terminated():  # time to store the turn
            return _ask(session, prompt, options, as_json=as_json, stream=stream)
    except TerminatedError as ended:
        return ended.status


def _ask(
    session: Session, prompt: Prompt, options: ReplOptions, *, as_json: bool, stream: bool
) -> int:
    history = history_of(session.settings, enabled=options.history, report=session.notices.put)
    try:
        conversation = _conversation(session, options, history)
        schema = bool(prompt.sampling.schema)
        output = _Output(session, as_json=as_json, stream=stream, schema=schema)
        history.on_wait = output.say
        output.be_asked()
        runner = TurnRunner(session, conversation, history)
        runner.begin(prompt)
        runner.answer(output)
        return output.status
    finally:
        try:
            history.close()
            session.routing.close()
            _say_what_is_left(session)
        finally:
            session.close()


def _say_what_is_left(session: Session) -> None:
    """Print pending notices, and what continues in the background."""
    screen = Screen(os.environ, sys.stderr)
    for notice in session.notices.take():
        screen.hint(printable(notice))
    download = download_under_way(session.view().local)
    if download is not None:
        screen.hint(describe_background(download))


def _conversation(session: Session, options: ReplOptions, history: Recorder) -> Conversation:
    """Return the conversation that the question continues or starts.

    Raises:
        ShammahError: the conversation to continue cannot be read.
    """
    if options.resume is not None:
        kept = read_conversation(history, options.resume)
        conversation = resume_conversation(kept, Conversation(), session.gate, options.system)
        history.resume(kept)
        echo(describe_resumed(kept, f"Continuing conversation {kept.number}"), err=True)
        return conversation
    system = session.settings.system if options.system is None else options.system
    conversation = Conversation(system)
    conversation.system_private = session.gate.rules.mark(conversation.system).private
    return conversation


class _Output:
    """Standard output for the answer, standard error for the rest (`shammah.chat.runner.Sink`).

    Attributes:
        status: what the program exits with, once the answer has ended.
    """

    def __init__(self, session: Session, *, as_json: bool, stream: bool, schema: bool) -> None:
        self.status: int = ExitCode.FAILED
        self._session = session
        self._as_json = as_json
        self._streams = stream and not as_json and not schema
        self._has_schema = schema
        self._screen = Screen(os.environ, sys.stderr)
        self._shown = _open_output()
        self._any_shown = False
        self._started = time.monotonic()
        self._said_prompt = self._started - PROGRESS_S
        self._said_waiting = ""
        self._notices: list[str] = []

    def _thoughts(self, turn: Turn) -> dict[str, object]:
        """The part of an object that only who wants to see them gets."""
        shows = self._session.settings.inference.think == "show"
        return {"thoughts": turn.thoughts} if shows else {}

    def be_asked(self) -> None:
        """Offer a terminal for the question whether something may be sent."""
        asks = self._session.settings.cloud.use == "ask"
        if asks and self._screen.terminal and take_terminal():
            self._session.gate.ask = self._consent

    def _consent(self, question: str) -> str | None:
        return asking(self._screen.prompt, question, lambda: self._session.interrupted)

    def notice(self, text: str, *, urgent: bool) -> None:
        self._notices.append(text)
        if self._any_shown and not self._as_json and sys.stdout.isatty():
            self._shown.finish()
            self._screen.line("")  # the answer's line, on the same terminal
            self._shown = _open_output()
        show = self._screen.line if urgent else self._screen.hint
        show(printable(text))

    def say(self, text: str) -> None:
        """Show what happens before the answer: live on a terminal, each sentence once in a log."""
        if self._screen.terminal:
            self._screen.live(text)
        elif text != self._said_waiting:
            self._said_waiting = text
            self._screen.hint(text)

    def progress(self, text: str, step: Step) -> None:
        now = time.monotonic()
        match step:
            case RouteDecision() | Token():
                self._screen.live(text)
                return
            case Waiting(state=None) if not self._screen.terminal:  # or every log would have it
                return
            case Waiting(state=Failed()):  # a failure is reported once, at the end
                return
            case PromptProgress() if not self._screen.terminal:
                if now - self._said_prompt < PROGRESS_S:
                    return
                self._said_prompt = now
        self.say(text)

    def thought(self, text: str) -> None:
        if self._as_json:
            self._screen.live("thinking ...")
        else:
            self._screen.thought(text)

    def piece(self, text: str, turn: TurnInProgress) -> None:
        self._any_shown = True
        if self._streams:
            self._screen.begin_line()
            self._shown.feed(text)
        elif not self._as_json:
            self._screen.live(f"answering ... {len(turn.pieces):,} pieces so far")

    def ended(self, turn: Turn) -> None:
        self._screen.end_live()
        match turn.end:
            case Done() as done:
                self.status = self._done(turn, done)
            case Failed() as failure:
                self.status = self._failed(turn, failure)

    def _done(self, turn: Turn, done: Done) -> int:
        if done.finish_reason == CANCELLED.code:
            return self._failed(turn, CANCELLED)
        if self._has_schema and done.finish_reason != "stop":
            return self._failed(turn, _unfit(done.finish_reason))
        assert turn.decision is not None  # it comes before
        if (empty := describe_empty(turn)) is not None:
            return self._failed(turn, empty)
        for notice in done.notices:
            self._screen.hint(printable(notice))
        if self._as_json:
            self._print_json(turn, done, turn.decision)
        else:
            self._end_answer(turn)
            self._screen.hint(describe_answer(done, turn.decision))
        return ExitCode.OK

    def _end_answer(self, turn: Turn) -> None:
        if not self._streams:
            self._shown.feed(turn.answer)
        self._shown.finish()
        _write("\n")

    def _print_json(self, turn: Turn, done: Done, decision: RouteDecision) -> None:
        elapsed_s = time.monotonic() - self._started
        measured = {"waited_s": turn.waited_s, "elapsed_s": elapsed_s}
        document = {
            "text": turn.answer,
            **self._thoughts(turn),
            **as_document(decision),
            "model": done.provenance.model,
            "finish_reason": done.finish_reason,
            "usage": asdict(done.usage),
            "timings": asdict(done.timings) | measured,
            "provenance": asdict(done.provenance),
            "left_out": done.left_out,
            "notices": [*self._notices, *done.notices],
        }
        print(json.dumps(document, ensure_ascii=False))

    def _failed(self, turn: Turn, failure: Failed) -> int:
        """Say why there is no answer, or only part of one."""
        if self._any_shown and not self._as_json:
            self._end_answer(turn)
        if self._as_json:
            error = {"code": failure.code, "message": failure.message, "hint": failure.hint}
            document: dict[str, object] = {"error": error, "text": turn.answer}
            document |= self._thoughts(turn)
            document |= as_document(turn.decision) if turn.decision is not None else {}
            if isinstance(turn.end, Done):
                model, reason = turn.end.provenance.model, turn.end.finish_reason
                document |= {"model": model, "finish_reason": reason, "usage": asdict(turn.usage)}
            print(json.dumps(document, ensure_ascii=False))
        self._screen.error(describe_failure(failure))
        return ExitCode.INTERRUPTED if failure.code == "cancelled" else ExitCode.FAILED


def _unfit(finish_reason: str) -> Failed:
    why = f"The answer ended early ({finish_reason}), so it may not fit the schema."
    return Failed("schema_unmet", why, "Ask again; if it was too long, raise --max-tokens.")


class _Pipe:
    """An answer written to a pipe or a file as it is."""

    def feed(self, piece: str) -> None:
        _write(piece)

    def finish(self) -> None:
        pass


def _open_output() -> Answer:
    if not sys.stdout.isatty():
        return _Pipe()
    if os.environ.get("TERM") == "dumb":
        return RawAnswer(_write)
    return LaidOutAnswer(Plain(), _write, lambda: size_of(sys.stdout))


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
