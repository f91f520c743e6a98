"""From a line to a question, with its attachments: files and the output of commands."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from shammah.bus.messages import Ready
from shammah.chat.attachments import Attachment, compose, read_attachment
from shammah.chat.conversation import Conversation
from shammah.chat.session import Session
from shammah.errors import ShammahError
from shammah.router.decision import LEAST_TOKENS
from shammah.router.question import estimate_tokens
from shammah.terminal.confirm import confirm
from shammah.terminal.screen import Screen
from shammah.terminal.text import printable

CLOUD_TOKENS = 200_000
"""The cloud's context, unless the settings name another."""

_REFERENCE = re.compile(r"""(?:^|(?<=\s))@(?:"([^"\n]+)"|'([^'\n]+)'|(\S+))""")
_FILE_NAME = re.compile(r"^[^()\[\]{}]*\w\.[A-Za-z]\w{0,4}$")
"""A name with an extension, and no program text: ``notes.txt``, not ``app.route('/')``."""
HINT = "Tab completes names after @."
_AFTER_A_NAME = ".,;:!?)]}'\""

LONGEST_OUTPUT = 200_000
"""Bytes that are kept: the beginning. A command that writes more is ended."""
COMMAND_S = 120.0
POLL_S = 0.05
KILL_S = 2.0
"""After SIGTERM it may clean up for so long."""


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
            files = read_references(question, self._report, self._agrees)
        attached = [*self._waiting, *files]
        text = compose(question, attached)
        private = private or any(one.private for one in attached)
        sources = tuple(source for one in attached for source in one.sources)
        if attached:
            messages = self._conversation.with_question(text)[-1:]  # earlier turns can be left out
            mark = self._session.gate.judge(text, private=private, sources=sources)
            check_room(estimate_tokens(messages), self._limits(mark.private))
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
            output, end = run_command(command, self._show, cancelled)
        except OSError as error:
            self._screen.error(f"Couldn't run it: {error.strerror}.")
            return
        if output and not output.endswith("\n"):
            self._screen.line("")
        gate = self._session.gate
        title = f"Output of `{command}` ({end})"
        private = private or gate.private
        self._waiting.append(Attachment(title, output, private=private, heading=title))
        lines = len(output.splitlines())
        size = f"{lines:,} line{'' if lines == 1 else 's'}, {end}"
        self._screen.hint(f"Attached to your next question ({size}). To drop it: /clear.")

    def forget(self) -> None:
        """Drop the attachments of the next question."""
        self._waiting.clear()

    def _limits(self, private: bool) -> dict[str, int]:
        session = self._session
        state = session.view().local
        limits = {"the local model": state.context_length if isinstance(state, Ready) else 0}
        if session.cloud is not None and not private:
            settings = session.settings
            limits[settings.cloud_name] = settings.cloud.context_length or CLOUD_TOKENS
        return limits

    def _agrees(self, question: str, cancelled: Callable[[], bool] = lambda: False) -> bool:
        return confirm(question, show=self._screen.prompt, cancelled=cancelled)

    def _report(self, sentence: str) -> None:
        self._screen.hint(printable(sentence))

    def _show(self, text: str) -> None:
        self._screen.prompt(printable(text))


def read_references(
    question: str, report: Callable[[str], None], agrees: Callable[[str], bool]
) -> list[Attachment]:
    """Read the files that ``question`` names. An ``@`` in front of anything else, such as a
    decorator or a person, is text.

    Args:
        question: as it was entered.
        report: given a sentence about what looks like a path but does not exist.
        agrees: whether to send the question although what can only be meant as a file does not
            exist: a model would make its content up.

    Raises:
        ShammahError: a file cannot be read, or the question is not to be sent.
    """
    found: dict[str, Attachment] = {}
    for match in _REFERENCE.finditer(question):
        name = match[1] or match[2] or match[3]
        path = Path(name).expanduser() if not name.startswith("~~") else Path(name)
        if match[3] and not path.exists():
            stripped = name.rstrip(_AFTER_A_NAME)
            path = Path(stripped).expanduser() if stripped else path
            name = stripped or name
        if path.is_file() or (path.exists() and ("/" in name or not path.is_dir())):
            found.setdefault(str(path.absolute()), _read(path, name, report))
        elif match[1] or match[2] or name.startswith(("/", "./", "../", "~/")):
            raise ShammahError("attachment", f"There is no file {name!r:.200}.", HINT)
        elif path.is_dir():
            report(f"{name} is a directory, so it is sent as text.")
        elif _FILE_NAME.search(name):
            if not agrees(f"There is no file {printable(name):.200}. Send it as text?"):
                raise ShammahError("attachment", "Not sent.", HINT)
        elif "/" in name or "." in name:
            report(f"There is no file {name}, so it is sent as text.")
    return list(found.values())


def _read(path: Path, name: str, report: Callable[[str], None]) -> Attachment:
    if not path.is_file():  # a pipe without a writer would block us forever
        kind = "a directory" if path.is_dir() else "not a file"
        raise ShammahError("attachment", f"{name} is {kind}.")
    read = read_attachment(str(path), report)
    if read.replaced:
        report(f"{name}: {read.replaced:,} of its bytes are not UTF-8 and became \ufffd.")
    sources = tuple(dict.fromkeys(read.sources))
    return replace(read, name=name, language=path.suffix.removeprefix("."), sources=sources)


def check_room(tokens: int, limits: Mapping[str, int]) -> None:
    """Refuse what surely no backend can take; the one that is asked counts for itself.

    Args:
        tokens: of the question with its attachments, roughly.
        limits: tokens that each backend can take; 0: not known.

    Raises:
        ShammahError: ``too_large``, with all numbers.
    """
    if any(limit == 0 or tokens * LEAST_TOKENS <= limit for limit in limits.values()):
        return
    takes = " and ".join(f"{backend} takes {limit:,}" for backend, limit in limits.items())
    raise ShammahError(
        "too_large",
        f"With its attachments the question has about {tokens:,} tokens; {takes}.",
        "Attach a smaller file or a part of it; /clear makes room.",
    )


def run_command(
    command: str, show: Callable[[str], None], cancelled: Callable[[], bool]
) -> tuple[str, str]:
    """Run ``command`` in the person's shell, with no input; its errors are part of the output.
    Return that, and how it ended (``exit status 1``, ``stopped after 120 s``).

    Args:
        show: is given the output as it comes.
        cancelled: asked often; the command and all that it has started are ended then.
    """
    process = subprocess.Popen(
        [os.environ.get("SHELL") or "/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    deadline = time.monotonic() + COMMAND_S
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    kept: list[str] = []
    left, cut = LONGEST_OUTPUT, ""
    with process.stdout as pipe:
        while not cut:
            if select.select([pipe], [], [], POLL_S)[0]:
                data = os.read(pipe.fileno(), 65536)[:left]
                if not data:
                    break
                left -= len(data)
                kept.append(decoder.decode(data))
                show(kept[-1])
            elif process.poll() is not None:
                break  # what it has left running keeps the pipe open
            cut = _why_ended(cancelled(), time.monotonic() > deadline, left <= 0)
    if cut:
        _end_command(process)
    status = process.wait()
    return "".join(kept), cut or f"exit status {status}"


def _why_ended(cancelled: bool, late: bool, full: bool) -> str:
    if cancelled:
        return "stopped by Ctrl-C"
    if late:
        return f"stopped after {COMMAND_S:g} s"
    return "stopped: it wrote too much" if full else ""


def _end_command(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_S)
            return
