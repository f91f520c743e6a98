"""``shammah ask``: one question, one answer, made for pipes.

The answer goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from shammah.bus.messages import Done, Failed, PromptProgress, Retrying, Sampling, Token
from shammah.chat.answer_line import describe_answer
from shammah.chat.answering import Answering
from shammah.chat.attachments import compose, decode_text, read_attachment
from shammah.chat.conversation import Conversation
from shammah.chat.session import CANCELLED, Notice, Routed, Session, Waiting
from shammah.chat.standard_input import read_input
from shammah.cli.termination import TerminatedError, raising_terminated
from shammah.errors import ExitCode
from shammah.history.listing import describe_resumed
from shammah.history.recorder import Recorder, history_of
from shammah.history.resuming import read_conversation, take_up
from shammah.learning.adapter_choice import learnt_private
from shammah.privacy import UNCHECKED, Mark, Outgoing, split_prefix
from shammah.privacy.gate import Consent, consent_question, parse_consent
from shammah.router.decision import RouteDecision, Target, Wish
from shammah.router.explanation import as_document
from shammah.settings.model import Settings
from shammah.supervision.secrets import take_secrets
from shammah.terminal.confirm import ask as asking
from shammah.terminal.output import echo, size_of
from shammah.terminal.painter import Answer, Rendering
from shammah.terminal.screen import Screen
from shammah.terminal.tty import take_terminal
from shammah.terminal.wording import (
    describe_background,
    describe_failure,
    describe_prompt,
    describe_retrying,
    describe_state,
    download_under_way,
    printable,
)

PROGRESS_S = 5.0
"""Between two lines in a log about a prompt that is being computed."""

Sources = tuple[str | None, ...]
"""Absolute paths that a question came from; ``None``: the system does not tell."""


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask, of whom and how. ``system`` of ``None``: as the settings say, or the
    conversation that goes on; ``resume`` is its number, 0: the newest, ``None``: none."""

    text: str
    system: str | None
    wish: Wish
    sampling: Sampling
    max_new_tokens: int | None
    as_json: bool
    stream: bool = True
    sources: Sources = ()
    resume: int | None = None
    history: bool = True


def read_question(
    words: str | None, files: tuple[str, ...], *, piped: bool = True
) -> tuple[str, Sources]:
    """The question: the words, the files, and what comes through a pipe; and where from.

    Args:
        files: paths; ``-`` is standard input, whatever that is.
        piped: read standard input as `read_input` does.

    Raises:
        ShammahError: a file that cannot be had, is too long or no text; so for a pipe.
    """
    tell = Screen(os.environ, sys.stderr).hint
    words, no_text = decode_text((words or "").encode("utf-8", "surrogateescape"), "The question")
    brought = [read_attachment(file, tell) for file in files if file != "-"]
    attachments = list(brought)
    given = None
    if piped or "-" in files:
        asked = bool(brought or words.strip())
        given = read_input(tell, asked=asked, wanted="-" in files)
        brought += [given] if given else []
    replaced = {"The question": no_text} | {one.name: one.replaced for one in brought}
    for name, count in replaced.items():
        if count:
            amount = f"{count} byte" + ("" if count == 1 else "s")
            echo(f"{name}: {amount} of it are no UTF-8.", err=True)
    sources = tuple(source for one in brought for source in one.sources)
    return compose(words, attachments, given), sources


def ask(settings: Settings, question: Question) -> int:
    """Answer and return the exit status."""
    environ = take_secrets(os.environ)
    session = Session(settings, environ, "ask", local_only=question.wish.target is Target.LOCAL)
    try:
        signal.signal(signal.SIGINT, lambda number, frame: session.interrupt())
        with raising_terminated():  # time to keep the turn
            return _ask(session, question)
    except TerminatedError as ended:
        return ended.status


def _ask(session: Session, question: Question) -> int:
    settings = session.settings
    text, private = split_prefix(question.text)
    mark = _judge(session, settings, question.sources, text, private or question.wish.private)
    question = replace(question, text=text, wish=replace(question.wish, private=mark.private))
    history = history_of(settings, enabled=question.history)
    answer = _Answer(question, history, lambda: session.routing.last_turn)
    try:
        conversation = _conversation(session, settings, question, history)
        answer.begin(session, mark)
        try:
            return answer.show(session, conversation, mark.private)
        finally:
            answer.keep(session, conversation)  # whoever read it may have left
    finally:
        try:
            answer.end(session)
        finally:
            session.close()


def _conversation(
    session: Session, settings: Settings, question: Question, history: Recorder
) -> Conversation:
    """What the question comes after.

    Raises:
        ShammahError: the conversation to go on with cannot be read.
    """
    if question.resume is not None:
        kept = read_conversation(history, question.resume)
        conversation = take_up(kept, Conversation(), session.gate, question.system)
        history.resume(kept)
        echo(describe_resumed(kept, f"Continuing conversation {kept.number}"), err=True)
        return conversation
    conversation = Conversation(settings.system if question.system is None else question.system)
    conversation.system_private = session.gate.rules.mark(conversation.system).private
    return conversation


def _judge(
    session: Session, settings: Settings, sources: Sources, text: str, private: bool
) -> Mark:
    if None in sources and settings.privacy.paths and not private:
        return Mark(True, UNCHECKED)
    known = [source for source in sources if source]
    return session.gate.judge(text, private=private, sources=known)


class _Answer:
    """One answer on its way to stdout."""

    def __init__(self, question: Question, history: Recorder, outcome: Callable[[], str]) -> None:
        self._question = question
        self._history = history
        self._screen = Screen(os.environ, sys.stderr)
        self._shown = _open_output()
        self._answering = Answering(question.text, question.wish.private, outcome)
        self._kept = False
        self._started = time.monotonic()
        self._said_prompt = self._started - PROGRESS_S
        self._said_waiting = ""
        self._notices: list[str] = []
        history.on_wait = self._progress

    @property
    def _streams(self) -> bool:
        question = self._question
        return question.stream and not question.as_json and not question.sampling.schema

    def begin(self, session: Session, mark: Mark) -> None:
        """Say why the question is private, and be there to be asked."""
        cloud = self._question.wish.target is Target.CLOUD
        if why := session.gate.explain(mark, cloud=cloud):
            self._screen.hint(why)
        if session.settings.cloud.use == "ask" and self._screen.terminal and take_terminal():
            session.gate.ask = lambda outgoing: self._consent(session, outgoing)

    def _consent(self, session: Session, outgoing: Outgoing) -> Consent:
        question = consent_question(outgoing)
        return parse_consent(asking(self._screen.prompt, question, lambda: session.interrupted))

    def show(self, session: Session, conversation: Conversation, private: bool) -> int:
        question = self._question
        asked = self._answering.record(self._answering.turn(answer_private=False), time.time())
        system, system_private = conversation.system, conversation.system_private
        self._history.begin(asked, system, system_private=system_private)
        messages = conversation.with_question(question.text, private=private)
        steps = session.answer(messages, question.wish, question.sampling, question.max_new_tokens)
        for step in self._answering.watch(steps):
            match step:
                case Notice(text, urgent):
                    self._notice(text, urgent=urgent)
                case Waiting(role, state):
                    if state is not None or self._screen.terminal:  # or every log would have it
                        self._progress(f"{role}: {describe_state(state)}")
                case Routed(decision):
                    self._history.settle()
                    self._screen.live(f"asking {decision.target} ...")
                case PromptProgress():
                    self._prompt(step)
                case Retrying():
                    self._progress(describe_retrying(step))
                case Token(reasoning=True):
                    self._screen.live("thinking ...")
                case Token(text=piece):
                    self._piece(piece)
                case Done():
                    self.keep(session, conversation)
                    return self._done(step)
                case Failed():
                    self.keep(session, conversation)
                    return self._failed(step)
        raise AssertionError("an answer ends with Done or Failed")

    def keep(self, session: Session, conversation: Conversation) -> None:
        """Keep the turn, once: before it is shown as finished, or as far as it has come."""
        if self._kept:
            return
        self._kept = True
        answering = self._answering
        judged = session.gate.answer_is_private(answering.answer, local=answering.local)
        judged = judged or learnt_private(session.settings.home, answering.adapter)
        turn = conversation.add(answering.turn(answer_private=judged), local=answering.local)
        record = answering.record(turn, time.time())
        private = conversation.system_private
        self._history.keep(record, conversation.system, system_private=private)

    def end(self, session: Session) -> None:
        """Say what goes on without us."""
        self._history.close()
        session.routing.close()
        complaints = [*self._history.take_complaints(), session.routing.take_complaint()]
        for complaint in filter(None, complaints):
            self._screen.hint(printable(complaint))
        download = download_under_way(session.view().local)
        if download is not None:
            self._screen.hint(describe_background(download))

    def _notice(self, text: str, *, urgent: bool) -> None:
        self._notices.append(text)
        if self._answering.pieces and not self._question.as_json and sys.stdout.isatty():
            self._shown.finish()
            self._screen.line("")  # the answer's line, on the same terminal
            self._shown = _open_output()
        show = self._screen.line if urgent else self._screen.hint
        show(printable(text))

    def _progress(self, text: str) -> None:
        if self._screen.terminal:
            self._screen.live(text)
        elif text != self._said_waiting:
            # In a log a line for each stage, not for each look.
            self._said_waiting = text
            self._screen.hint(text)

    def _prompt(self, progress: PromptProgress) -> None:
        now = time.monotonic()
        if self._screen.terminal or now - self._said_prompt >= PROGRESS_S:
            self._said_prompt = now
            self._progress(describe_prompt(progress))

    def _piece(self, piece: str) -> None:
        if self._streams:
            self._screen.end_live()
            self._shown.feed(piece)
        elif not self._question.as_json:
            self._screen.live(f"answering ... {len(self._answering.pieces):,} pieces so far")

    def _done(self, done: Done) -> int:
        if done.finish_reason == CANCELLED.code:
            return self._failed(CANCELLED, done)
        if self._question.sampling.schema and done.finish_reason != "stop":
            return self._failed(_unfit(done.finish_reason))
        decision = self._answering.decision
        assert decision is not None  # Routed comes before
        self._screen.end_live()
        if (empty := self._answering.empty) is not None:
            return self._failed(empty, done)
        for notice in done.notices:
            self._screen.hint(printable(notice))
        if self._question.as_json:
            self._print_json(done, decision)
        else:
            self._end_answer()
            self._screen.hint(describe_answer(done, decision))
        return ExitCode.OK

    def _end_answer(self) -> None:
        if not self._streams:
            self._shown.feed(self._answering.answer)
        self._shown.finish()
        _write("\n")

    def _print_json(self, done: Done, decision: RouteDecision) -> None:
        elapsed_s = time.monotonic() - self._started
        timings = asdict(done.timings) | {
            "waited_s": self._answering.account.waited_s,
            "elapsed_s": elapsed_s,
        }
        document = {
            "text": self._answering.answer,
            **as_document(decision),
            "model": done.provenance.model,
            "finish_reason": done.finish_reason,
            "usage": asdict(done.usage),
            "timings": timings,
            "provenance": asdict(done.provenance),
            "left_out": done.left_out,
            "notices": [*self._notices, *done.notices],
        }
        print(json.dumps(document, ensure_ascii=False))

    def _failed(self, failure: Failed, done: Done | None = None) -> int:
        """Say why there is no answer, or no whole one, which ``done`` ended."""
        self._screen.end_live()
        answering = self._answering
        if answering.pieces and not self._question.as_json:
            self._end_answer()
        if self._question.as_json:
            error = {"code": failure.code, "message": failure.message, "hint": failure.hint}
            routed = as_document(answering.decision) if answering.decision is not None else {}
            document = {"error": error, "text": answering.answer, **routed}
            if done is not None:
                ended = {"finish_reason": done.finish_reason, "usage": asdict(done.usage)}
                document |= {"model": done.provenance.model, **ended}
            print(json.dumps(document, ensure_ascii=False))
        self._screen.error(describe_failure(failure))
        return ExitCode.INTERRUPTED if failure.code == "cancelled" else ExitCode.FAILED


def _unfit(finish_reason: str) -> Failed:
    why = f"The answer ended early ({finish_reason}), so it need not fit the schema."
    return Failed("schema_unmet", why, "Ask again, with a larger --max-tokens if it was too long.")


class _Pipe:
    """An answer on its way to whoever reads: as it is."""

    def feed(self, piece: str) -> None:
        _write(piece)

    def finish(self) -> None:
        pass


def _open_output() -> Answer:
    if not sys.stdout.isatty():
        return _Pipe()
    moves = os.environ.get("TERM") != "dumb"
    return Rendering(possible=False, wraps=moves).begin(_write, lambda: size_of(sys.stdout))


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
