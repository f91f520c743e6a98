"""A person's own command, run so that its output can go with a question."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

LONGEST_OUTPUT = 200_000
"""Bytes that are kept: the beginning. A command that writes more is ended."""
LIMIT_S = 120.0
POLL_S = 0.05
KILL_S = 2.0
"""After SIGTERM it may clean up for so long."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a command has written, and how it ended (``cut`` says why, if it was ended)."""

    text: str
    status: int
    cut: str = ""

    def describe(self) -> str:
        """``exit status 1``, ``ended after 120 s``."""
        return self.cut or f"exit status {self.status}"


def run_command(command: str, show: Callable[[str], None], cancelled: Callable[[], bool]) -> Output:
    """Run ``command`` in the person's shell, with no input; its errors are part of the output.

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
    deadline = time.monotonic() + LIMIT_S
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
            cut = _reason(cancelled(), time.monotonic() > deadline, left <= 0)
    if cut:
        _end(process)
    return Output("".join(kept), process.wait(), cut)


def _reason(cancelled: bool, late: bool, full: bool) -> str:
    if cancelled:
        return "stopped by Ctrl-C"
    if late:
        return f"stopped after {LIMIT_S:g} s"
    return "stopped: it wrote too much" if full else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_S)
            return
