"""``shammah ask``: one question, one answer, made for pipes.

The answer goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass

from shammah.bus.messages import ChatMessage, Done, Failed, Sampling, Token
from shammah.config import Settings
from shammah.conversation import Conversation
from shammah.errors import ExitCode
from shammah.repl.screen import Screen
from shammah.router.decision import RouteDecision, Target, Wish
from shammah.session import Routed, Session, Waiting
from shammah.wording import (
    describe_answer,
    describe_background,
    describe_failure,
    describe_state,
    download_under_way,
    printable,
)


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask, of whom and how."""

    text: str
    system: str
    wish: Wish
    sampling: Sampling
    max_new_tokens: int | None
    as_json: bool


def read_question(argument: str | None) -> str:
    """The question: the argument, and after it what comes through a pipe."""
    piped = "" if sys.stdin.isatty() else sys.stdin.read().strip()
    return "\n\n".join(part for part in ((argument or "").strip(), piped) if part)


def ask(settings: Settings, question: Question) -> int:
    """Answer and return the exit status."""
    session = Session(settings, os.environ, "ask", local_only=question.wish.target is Target.LOCAL)
    signal.signal(signal.SIGINT, lambda number, frame: session.interrupt())
    messages = Conversation(question.system).with_question(question.text)
    answer = _Answer(question)
    try:
        return answer.show(session, messages)
    finally:
        answer.end(session)
        session.close()


class _Answer:
    """One answer on its way to stdout."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._screen = Screen(os.environ, sys.stderr)
        self._text: list[str] = []
        self._decision: RouteDecision | None = None
        self._started = time.monotonic()
        self._said_waiting = ""

    def show(self, session: Session, messages: tuple[ChatMessage, ...]) -> int:
        steps = session.answer(
            messages, self._question.wish, self._question.sampling, self._question.max_new_tokens
        )
        for step in steps:
            match step:
                case Waiting(role, state):
                    self._progress(f"{role}: {describe_state(state)}")
                case Routed(decision):
                    self._decision = decision
                    self._screen.live(f"asking {decision.target} ...")
                case Token(reasoning=True):
                    self._screen.live("thinking ...")
                case Token(text=piece):
                    self._piece(piece)
                case Done():
                    return self._done(step)
                case Failed():
                    return self._failed(step)
        raise AssertionError("an answer ends with Done or Failed")

    def end(self, session: Session) -> None:
        """Say what goes on without us."""
        download = download_under_way(session.view().local)
        if download is not None:
            self._screen.hint(describe_background(download))

    def _progress(self, text: str) -> None:
        if self._screen.terminal:
            self._screen.live(text)
        elif text != self._said_waiting:
            # In a log a line for each stage, not for each look.
            self._said_waiting = text
            self._screen.hint(text)

    def _piece(self, piece: str) -> None:
        self._text.append(piece)
        if not self._question.as_json:
            self._screen.end_live()
            # A terminal would obey escape sequences; a pipe gets the text as it is.
            sys.stdout.write(printable(piece) if sys.stdout.isatty() else piece)
            sys.stdout.flush()

    def _done(self, done: Done) -> int:
        assert self._decision is not None  # Routed comes before
        self._screen.end_live()
        for notice in done.notices:
            self._screen.hint(printable(notice))
        if self._question.as_json:
            self._print_json(done, self._decision)
        else:
            sys.stdout.write("\n")
            sys.stdout.flush()
            self._screen.hint(describe_answer(done, self._decision))
        return ExitCode.OK

    def _print_json(self, done: Done, decision: RouteDecision) -> None:
        document = {
            "text": "".join(self._text),
            "target": decision.target.value,
            "reason": decision.reason.value,
            "model": done.provenance.model,
            "finish_reason": done.finish_reason,
            "usage": asdict(done.usage),
            "timings": {**asdict(done.timings), "elapsed_s": time.monotonic() - self._started},
            "provenance": asdict(done.provenance),
            "notices": list(done.notices),
        }
        print(json.dumps(document, ensure_ascii=False))

    def _failed(self, failure: Failed) -> int:
        self._screen.end_live()
        if self._text and not self._question.as_json:
            sys.stdout.write("\n")
            sys.stdout.flush()
        if self._question.as_json:
            error = {"code": failure.code, "message": failure.message, "hint": failure.hint}
            print(json.dumps({"error": error, "text": "".join(self._text)}, ensure_ascii=False))
        self._screen.error(describe_failure(failure))
        return ExitCode.INTERRUPTED if failure.code == "cancelled" else ExitCode.FAILED
