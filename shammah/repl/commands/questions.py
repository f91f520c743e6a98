"""From a line to a question, with its attachments: files and the output of commands."""

from __future__ import annotations

from collections.abc import Callable

from shammah.bus.messages import Ready
from shammah.chat.attachments import Attachment, compose
from shammah.chat.conversation import Conversation
from shammah.chat.session import Session
from shammah.repl.commands import references, shell
from shammah.router.question import estimate_tokens
from shammah.terminal.confirm import confirm
from shammah.terminal.screen import Screen
from shammah.terminal.wording import printable

CLOUD_TOKENS = 200_000
"""Claude's context, unless the settings name another."""


class Questions:
    """Prepares the questions of one prompt, and holds the attachments of the next one."""

    def __init__(self, session: Session, conversation: Conversation, screen: Screen) -> None:
        self._session = session
        self._conversation = conversation
        self._screen = screen
        self._waiting: list[Attachment] = []

    def prepare(
        self, question: str, private: bool, *, with_files: bool
    ) -> tuple[str, bool, tuple[str | None, ...]]:
        """Return ``question`` with its attachments, whether the person says that any of it is
        private, and where it came from.

        Raises:
            ShammahError: something cannot be attached; nothing is to be asked.
        """
        files: list[Attachment] = []
        if with_files:
            files = references.read_references(question, self._report, self._agrees)
        attached = [*self._waiting, *files]
        text = compose(question, attached)
        private = private or any(one.private for one in attached)
        sources = tuple(source for one in attached for source in one.sources)
        if attached:
            messages = self._conversation.with_question(text)[-1:]  # earlier turns can be left out
            mark = self._session.gate.judge(text, private=private, sources=sources)
            references.check_room(estimate_tokens(messages), self._limits(mark.private))
        self._waiting.clear()
        return text, private, sources

    def add_output(self, command: str, private: bool, cancelled: Callable[[], bool]) -> None:
        """Run a command, if the person agrees, and attach its output to the next question."""
        if not command:
            self._screen.hint("Write a command after ! to attach its output to your next question.")
            return
        if not self._agrees(f"Run {printable(command)} and attach its output?", cancelled):
            self._screen.hint("Not run.")
            return
        try:
            output = shell.run_command(command, self._show, cancelled)
        except OSError as error:
            self._screen.error(f"Couldn't run it: {error.strerror}.")
            return
        if output.text and not output.text.endswith("\n"):
            self._screen.line("")
        gate = self._session.gate
        title = f"Output of `{command}` ({output.describe()})"
        private = private or gate.private
        self._waiting.append(Attachment(title, output.text, private=private, heading=title))
        lines = len(output.text.splitlines())
        size = f"{lines:,} line{'' if lines == 1 else 's'}, {output.describe()}"
        self._screen.hint(f"Attached to your next question ({size}). To drop it: /clear.")

    def forget(self) -> None:
        """Drop the attachments of the next question."""
        self._waiting.clear()

    def _limits(self, private: bool) -> dict[str, int]:
        session = self._session
        state = session.view().local
        limits = {"the local model": state.context_length if isinstance(state, Ready) else 0}
        if session.cloud is not None and not private:
            limits["Claude"] = session.settings.cloud.context_length or CLOUD_TOKENS
        return limits

    def _agrees(self, question: str, cancelled: Callable[[], bool] = lambda: False) -> bool:
        return confirm(question, show=self._screen.prompt, cancelled=cancelled)

    def _report(self, sentence: str) -> None:
        self._screen.hint(printable(sentence))

    def _show(self, text: str) -> None:
        self._screen.prompt(printable(text))
