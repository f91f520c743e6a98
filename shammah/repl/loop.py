"""The read-answer loop."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import TYPE_CHECKING

from shammah.bus.endpoints import open_endpoints
from shammah.bus.messages import Done, Failed, NotAvailable, Ready
from shammah.chat.conversation import Conversation, Prompt, Step, Turn, TurnInProgress
from shammah.chat.options import ReplOptions, parse_options
from shammah.chat.runner import TurnRunner
from shammah.chat.session import Session
from shammah.chat.summary import describe_answer, describe_empty
from shammah.chat.warmup import WarmUp
from shammah.errors import ExitCode, ShammahError
from shammah.history.recorder import history_of
from shammah.models.catalogue import check_model_name
from shammah.privacy import PREFIX, split_prefix
from shammah.repl.commands import history, routing, table
from shammah.repl.input.interrupts import Interrupts
from shammah.repl.input.lines import PROMPT, EditorOptions, Lines, content_of_block
from shammah.repl.installation import Installation
from shammah.repl.model_switch import ModelSwitch
from shammah.repl.questions import Questions
from shammah.repl.toolbar import Part, Spending, describe_bottom
from shammah.repl.welcome import FirstRun
from shammah.router.crisis import detect_danger
from shammah.router.decision import Override, Target
from shammah.router.question import estimate_tokens
from shammah.settings.load import load_settings
from shammah.supervision.download_notices import DownloadNotices
from shammah.supervision.secrets import take_secrets
from shammah.terminal.confirm import ask
from shammah.terminal.output import wants_style
from shammah.terminal.screen import Screen
from shammah.terminal.text import printable
from shammah.terminal.tty import CLEAR_LINE, echo_off
from shammah.terminal.wording import describe_background, download_under_way

if TYPE_CHECKING:
    from shammah.learning.auto import AutoTraining

LINES_FILE = "prompt_history.jsonl"
WELCOME_S = 1.0
"""A first question waits so long for what is told before its answer."""
TWICE_S = 1.0
"""Two Ctrl-C within this leave the program."""


def open_repl(arguments: list[str]) -> int:
    """Everything after the prompt is on the screen. Returns the exit status."""
    screen = Screen(os.environ)
    try:
        options = parse_options(arguments)
        settings = load_settings(os.environ, options.model, options.licence)
        settings = settings.with_think(options.think)
        check_model_name(settings.model)
        local_only = options.override.target is Target.LOCAL
        environ = take_secrets(os.environ)
        session = Session(settings, environ, "repl", local_only=local_only)
    except ShammahError as error:
        os.write(1, CLEAR_LINE if os.environ.get("TERM") != "dumb" else b"\n")
        screen.error(error.message, error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        screen.line("")
        return ExitCode.INTERRUPTED
    return Repl(session, options, screen).run()


class Repl:
    """One person's ``conversation`` in one terminal.

    Attributes:
        override: what holds for every question.
        questions: the attachments of the next one.
        spending: what this session's answers have taken.
        switch: changes the local model.
    """

    def __init__(self, session: Session, options: ReplOptions, screen: Screen) -> None:
        self.session = session
        self._options = options
        self.override = options.override
        self.screen = screen
        system = session.settings.system if options.system is None else options.system
        self.conversation = Conversation(system)
        gate = session.gate
        gate.private = options.override.private
        gate.ask = self._consent
        self.conversation.system_private = gate.rules.mark(system).private
        notices = session.notices
        self.history = history_of(session.settings, enabled=options.history, report=notices.put)
        self.history.on_wait = screen.live
        self._runner = TurnRunner(session, self.conversation, self.history)
        self._interrupted_at = -TWICE_S
        self._training: AutoTraining | None = None
        self._downloads = DownloadNotices(open_endpoints(os.environ), notices.put)
        self._interrupts = Interrupts()
        self.questions = Questions(session, self.conversation, screen)
        self.spending = Spending()
        self._conversation_tokens = 0
        self._warm_up = WarmUp(session, self.conversation)
        local, settings = options.override.target is Target.LOCAL, session.settings
        self._first_run = FirstRun(settings, os.environ, local_only=local, put=notices.put)
        screen.markdown = session.settings.render == "markdown"
        how = self._editor_options() if os.environ.get("TERM") != "dumb" else None
        self._lines = Lines(how, self._live_line, self._interrupts, screen, self._show_notices)
        self.switch = ModelSwitch(session, self._lines.refresh)
        notices.on_put = self._lines.interject
        self._installation = Installation(os.environ, self._lines.refresh, notices.put)

    def _editor_options(self) -> EditorOptions:
        settings = self.session.settings
        return EditorOptions(
            vi=settings.editor.keys == "vi",
            styled=wants_style(os.environ),
            history_file=settings.home / LINES_FILE if self.history.enabled else None,
            may_store=self._may_store,
            commands=table.descriptions(),
            afterwards=self.screen.load_markdown,
            report=self.screen.error,
        )

    def _may_store(self, line: str) -> bool:
        """Whether a line may be kept in a file: not if it is private for whatever reason."""
        question, private = split_prefix(line)
        return not self.session.gate.judge(question, private=private).private

    def run(self) -> int:
        self._interrupts.install()
        for number in (signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, _leave)
        try:
            self.start()
            self._loop()
        except (EOFError, KeyboardInterrupt, SystemExit, OSError):
            pass  # OSError: the terminal is gone
        finally:
            download = download_under_way(self.switch.show(self.session.view().local))
            self.close()
        known = self._downloads.transfer or download
        hints = [printable(notice) for notice in self.session.notices.take()]
        hints += [describe_background(known)] if download and known else []
        self.screen.farewell(*hints)
        return ExitCode.OK

    def close(self) -> None:
        """Leave the terminal, the files and the workers; what is in hand is kept as it is."""
        self._lines.close()
        self.switch.leave()
        self._runner.keep()
        self.history.close()
        if self._training is not None:
            self._training.close()
        self.session.close()
        self._downloads.close()
        self._installation.close()

    def _learn(self) -> None:
        """Begin trainings in the background, if that is switched on."""
        settings = self.session.settings
        if settings.train.auto:
            from shammah.learning.auto import AutoTraining

            self._training = AutoTraining(settings, lambda: self.session.settings.model)
            self._training.start()

    def start(self) -> None:
        """Begin with the workers, and with the conversation that was asked for."""
        self.session.watch(self._on_change)
        self.session.start()
        self._learn()
        if self._options.resume is not None:
            self._lines.clear()
            history.begin(self, self._options.resume, self._options.system)
            self.screen.prompt(PROMPT)  # what was typed meanwhile still waits in the terminal

    def _loop(self) -> None:
        self._first_run.start()
        first = True
        while True:
            try:
                self._interrupts.check()
                if not first:  # then the prompt stands on the screen already
                    self._show_notices()
                self._conversation_tokens = estimate_tokens(self.conversation.with_question(""))
                line = self._lines.read()
                if first:
                    first = False
                    if detect_danger(line) is None:  # else nothing comes before whom to call
                        self._first_run.settle(WELCOME_S)
                        self._show_notices()
                self.act(line)
            except KeyboardInterrupt:
                self._interrupts.noted = False
                if not self._first_interrupt():
                    raise
                self.screen.hint("Press Ctrl-C again or Ctrl-D to exit.")

    def act(self, line: str) -> None:
        """Do what a line says."""
        question, private = split_prefix(line.rstrip())
        quoted = content_of_block(question)
        if quoted is not None:
            self.ask(quoted, private, self.override, with_files=False)
        elif line.lstrip().startswith("/"):
            with self._interrupts.raised():
                table.run(line.strip(), self)
        elif question.lstrip().startswith("!"):
            self._run_command(question.lstrip()[1:].strip(), private)
        elif question:
            self.ask(question, private, self.override)
        elif private:
            self.screen.hint(f"Write a question after {PREFIX}.")

    def _first_interrupt(self) -> bool:
        now = time.monotonic()
        first = now - self._interrupted_at >= TWICE_S
        self._interrupted_at = now
        return first

    def ask(
        self,
        question: str,
        private: bool,
        override: Override,
        *,
        again: bool = False,
        with_files: bool = True,
    ) -> None:
        """Have a question answered, and store the turn.

        Args:
            question: what to ask.
            private: the person says so.
            override: who is to answer.
            again: it was asked before, so it has its attachments already.
            with_files: attach the files that it names.
        """
        sources: tuple[str | None, ...] = ()
        if not again:
            try:
                with self._interrupts.raised():
                    question, private, sources = self.questions.prepare(
                        question, private, with_files=with_files
                    )
            except ShammahError as error:
                self.screen.error(error.message, error.hint)
                return
        self._answer(Prompt(question, private, sources, override))

    def inquire(self, question: str) -> str | None:
        """What the person types; ``None``: nothing, or nobody is there."""
        if not (self.screen.terminal and os.isatty(0)):
            return None
        with self._interrupts.calling(self._interrupts.note):  # from when it can be read
            line = ask(self.screen.prompt, question, lambda: self._interrupts.noted)
        if line is None:
            self.screen.line("")
        return line

    def _run_command(self, command: str, private: bool) -> None:
        pressed: list[None] = []
        with self._interrupts.calling(lambda: pressed.append(None)), echo_off():
            self.questions.add_output(command, private, lambda: bool(pressed))

    def _consent(self, question: str) -> str | None:
        return ask(self.screen.prompt, question, lambda: self.session.interrupted)

    def _on_interrupt(self) -> None:
        if self._runner.in_hand is None:
            self._interrupts.note()  # the answer has ended: as if it came at the prompt
        elif self._first_interrupt():
            self.session.interrupt()
        else:
            raise KeyboardInterrupt

    def _answer(self, prompt: Prompt) -> None:
        self._runner.begin(prompt)
        press = self._interrupts.calling(self._on_interrupt)
        with press, echo_off(), self._warm_up.answering():
            try:
                self._runner.answer(self)
            finally:
                if self._training is not None:
                    self._training.note_question()

    # --- what comes of a question (`shammah.chat.runner.Sink`) -----------------------------

    def notice(self, text: str, *, urgent: bool) -> None:
        (self.screen.line if urgent else self.screen.hint)(printable(text))

    def progress(self, text: str, step: Step) -> None:
        self.screen.live(text)

    def thought(self, text: str) -> None:
        self.screen.thought(text)

    def piece(self, text: str, turn: TurnInProgress) -> None:
        self.screen.answer(text)

    def ended(self, turn: Turn) -> None:
        self.spending.add(turn.usage)
        match describe_empty(turn) or turn.end:
            case Done() as done:
                assert turn.decision is not None  # it comes before
                self.screen.end_answer(done, describe_answer(done, turn.decision))
            case Failed() as failure:
                self.screen.end_failed(failure)

    def _live_line(self, typed: str) -> tuple[Part, ...]:
        """What stands below the prompt, when so much of a line has been typed."""
        session = self.session
        view = session.view()
        override = routing.read_override(typed, self.override, session.gate)
        decision = session.preview(override, self._conversation_tokens, view)
        state = self.switch.show(view.local)
        if isinstance(state, Failed | NotAvailable) and (session.cloud or session.servers):
            state = Ready("")  # told when it matters; others answer
        resting = session.local.resting
        parts = describe_bottom(state, decision, view.cloud_model, self.spending, resting=resting)
        installing = self._installation.shown
        return (*parts, Part(installing, "installing")) if installing else parts

    def _on_change(self) -> None:
        state = self.session.view().local
        self.switch.look(state)
        self._downloads.follow(self.switch.show(state))
        self._warm_up.look()
        self._lines.refresh()

    def _show_notices(self) -> None:
        for sentence in self.session.notices.take():
            self.screen.hint(printable(sentence))


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
