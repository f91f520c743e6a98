"""A person at a terminal: the REPL on a pty."""

from __future__ import annotations

import json
import os
import re
import signal
import termios
from pathlib import Path

import pexpect

from tests.fakes.command import SHAMMAH
from tests.fakes.sandbox import LIMIT_S, until

PROMPT = "> "
EDITOR = re.escape("\x1b[?2004h\x1b[?") + "(25l|1l)"
"""How the editor begins to read. What we write ourselves has no second mode behind the first."""

CTRL_C, CTRL_D, ENTER = "\x03", "\x04", "\r"

SEQUENCE = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>])")
STYLE = re.compile(r"\x1b\[[0-9;]*m")


class Terminal:
    """``shammah ARGUMENTS`` on a terminal of 24 by 80."""

    def __init__(
        self,
        *arguments: str,
        command: tuple[str, ...] = SHAMMAH,
        environ: dict[str, str] | None = None,
    ) -> None:
        # The editor would ask where the cursor is, and nobody answers.
        variables = {**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1", **(environ or {})}
        self.child = pexpect.spawn(
            command[0],
            [*command[1:], *arguments],
            env=variables,
            encoding="utf-8",
            codec_errors="replace",
            dimensions=(24, 80),
            timeout=LIMIT_S,
        )
        self.child.delaybeforesend = self.child.delayafterclose = None
        self.child.ptyproc.delayafterclose = 0
        self.pid = int(self.child.pid)
        self.output = ""
        self._modes: int | None = None

    def type(self, *texts: str) -> None:
        for text in texts:
            self.child.send(text)

    def ask(self, question: str) -> None:
        self.type(question, ENTER)

    def expect(self, pattern: str) -> str:
        """Wait for ``pattern`` and return what came up to it and with it."""
        self.child.expect(pattern)
        seen = str(self.child.before) + str(self.child.after)
        self.output += seen
        return seen

    def wait_prompt(self) -> None:
        self.expect(PROMPT)

    def wait_editor(self) -> None:
        self.expect(EDITOR)

    def wait_answering(self, words: str) -> None:
        """Until ``words`` have come as part of an answer, not as the question's echo."""
        self.expect("asking (local|cloud)")
        self.expect(words)

    def wait_answer(self) -> str:
        """Up to the line that says who has answered."""
        return self.expect(r"(local|cloud): [^\r]*\r\n")

    def end(self) -> int:
        """Wait until it has ended; its exit status (128 + n: signal n)."""
        self.output += str(self.child.read())
        self._modes = self._look()
        self.child.close()
        if self.child.signalstatus is not None:
            return 128 + int(self.child.signalstatus)
        return int(self.child.exitstatus)

    @property
    def text(self) -> str:
        """All of the output without escape sequences."""
        return SEQUENCE.sub("", self.output)

    @property
    def echoes(self) -> bool:
        """Whether the terminal itself shows what is typed."""
        return bool(self._look() & termios.ECHO)

    def is_sane(self) -> bool:
        """Whether the terminal echoes and hands over whole lines, as a shell wants it; after its
        `end`, whether it was left so."""
        wanted = termios.ECHO | termios.ICANON | termios.ISIG
        return (self._look() if self._modes is None else self._modes) & wanted == wanted

    def _look(self) -> int:
        """The local modes of the terminal, which both of its ends have."""
        return int(termios.tcgetattr(self.child.child_fd)[3])

    def hang_up(self) -> None:
        """Close the window."""
        # By its owner: the number will be another file's, which must not be closed later.
        self.child.ptyproc.fileobj.close()
        self.child.ptyproc.closed = self.child.closed = True

    def insist(self, key: str) -> None:
        """Type ``key`` again while the program stays. A signal in the instant between Python's
        look for one and readline's wait for a key is seen with the next key only."""
        while self.child.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=2):
            self.type(key)
        self.output += str(self.child.before)

    def leave_by_ctrl_c(self) -> None:
        """Ctrl-C until it has left; the first of a pair only says how to."""
        while self.child.isalive():
            self.type(CTRL_C)
            left = self.child.expect(["Press Ctrl-C again or Ctrl-D to exit", pexpect.EOF])
            self.output += str(self.child.before)
            if left:
                break

    def destroy(self) -> None:
        if self.child.isalive():
            os.kill(self.pid, signal.SIGKILL)
            self.child.wait()
        if not self.child.closed:
            self.child.close()


class Held:
    """A question whose answer is ``a b c ... f g h`` until it is to `go_on`: what is typed before
    is typed during an answer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.question = f"a b c d e f g h until:{path} v w x y z"

    def go_on(self) -> None:
        self._path.touch()


class Record:
    """What the stand-in was asked (``--record``)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def conversations(self) -> list[list[tuple[str, str]]]:
        if not self.path.exists():
            return []
        lines = self.path.read_text().splitlines()
        return [[(role, text) for role, text in json.loads(line)] for line in lines]

    @property
    def questions(self) -> list[str]:
        return [conversation[-1][1] for conversation in self.conversations]

    def wait(self, count: int) -> list[str]:
        """The questions, once there are so many."""
        until(lambda: len(self.conversations) >= count, f"{count} questions")
        return self.questions
