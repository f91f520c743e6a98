"""From a line to a question: with the files that it names and what commands have written."""

from __future__ import annotations

from collections.abc import Callable

from shammah.bus.messages import Ready
from shammah.chat.attachments import Attachment, compose
from shammah.chat.conversation import Conversation
from shammah.chat.session import Session
from shammah.repl.commands import references, shell
from shammah.repl.commands.references import Room
from shammah.router.question import estimate_tokens
from shammah.terminal.confirm import confirm
from shammah.terminal.screen import Screen
from shammah.terminal.wording import printable

CLOUD_TOKENS = 200_000
"""What Claude takes where the settings do not say."""


class Questions:
    """Prepares the questions of one prompt; keeps what goes with the next one."""

    def __init__(self, session: Session, conversation: Conversation, screen: Screen) -> None:
        self._session = session
        self._conversation = conversation
        self._screen = screen
        self._waiting: list[Attachment] = []

    def prepare(
        self, question: str, private: bool, *, with_files: bool
    ) -> tuple[str, bool, tuple[str | None, ...]]:
        """``question`` with what it brings along, whether the person says that any of it is
        private, and where it came from.

        Raises:
            ShammahError: something cannot be taken along; nothing is to be asked then.
        """
        files: list[Attachment] = []
        if with_files:
            files = references.read_references(question, self._report, self._agrees)
        brought = [*self._waiting, *files]
        text = compose(question, brought)
        private = private or any(one.private for one in brought)
        sources = tuple(source for one in brought for source in one.sources)
        if brought:
            messages = self._conversation.with_question(text)[-1:]  # earlier turns can be left out
            mark = self._session.gate.judge(text, private=private, sources=sources)
            references.check_room(estimate_tokens(messages), self._room(mark.private))
        self._waiting.clear()
        return text, private, sources

    def add_output(self, command: str, private: bool, cancelled: Callable[[], bool]) -> None:
        """Run a command, if the person agrees, and keep its output for the next question."""
        if not command:
            self._screen.hint("Write a command after !: its output goes with your next question.")
            return
        if not self._agrees(f"Run {printable(command)} and add its output?", cancelled):
            self._screen.hint("Not run.")
            return
        try:
            output = shell.run_command(command, self._show, cancelled)
        except OSError as error:
            self._screen.error(f"It could not be run ({error.strerror}).")
            return
        if output.text and not output.text.endswith("\n"):
            self._screen.line("")
        gate = self._session.gate
        title = f"Output of `{command}` ({output.describe()})"
        private = private or gate.private
        self._waiting.append(Attachment(title, output.text, private=private, heading=title))
        lines = len(output.text.splitlines())
        size = f"{lines:,} line{'' if lines == 1 else 's'}, {output.describe()}"
        self._screen.hint(f"This goes with your next question ({size}); /clear forgets it.")

    def forget(self) -> None:
        """Nothing goes with the next question."""
        self._waiting.clear()

    def _room(self, private: bool) -> Room:
        session = self._session
        state = session.view().local
        local = state.context_length if isinstance(state, Ready) else 0
        if session.cloud is None or private:
            return Room(local, None)
        return Room(local, session.settings.cloud.context_length or CLOUD_TOKENS)

    def _agrees(self, question: str, cancelled: Callable[[], bool] = lambda: False) -> bool:
        return confirm(question, show=self._screen.prompt, cancelled=cancelled)

    def _report(self, sentence: str) -> None:
        self._screen.hint(printable(sentence))

    def _show(self, text: str) -> None:
        self._screen.prompt(printable(text))
