"""The echo worker as a child of the test."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from shammah.bus.messages import Event
from shammah.bus.probe import ask_status
from shammah.errors import ShammahError
from tests.fakes.frontend import ECHO
from tests.fakes.sandbox import LIMIT_S, Sandbox, until


class EchoProcess:
    """A stand-in worker of ``role`` with the given options (`tests/fakes/echo.py`)."""

    def __init__(self, sandbox: Sandbox, role: str, model: str, *options: str) -> None:
        self.role = role
        self._sandbox = sandbox
        log = sandbox.root / f"echo-{role}.log"
        command = [sys.executable, "-P", ECHO, role, "--model", model, *options]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self.pid = self.process.pid
        self._log = log

    def wait_up(self) -> EchoProcess:
        """Until it holds the lock and has bound its sockets."""
        events = self._sandbox.endpoints.runtime / f"{self.role}.events"
        until(
            lambda: self._sandbox.holder(self.role) == self.pid and events.exists(),
            f"the {self.role} worker is up ({self._log} says why not)",
        )
        return self

    def status(self) -> Event:
        """What it says of itself now."""
        return until(self._ask, f"the {self.role} worker tells its status")

    def alive(self) -> bool:
        return self.process.poll() is None

    def log(self) -> str:
        return Path(self._log).read_text()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.wait()

    def wait(self, limit: float = LIMIT_S) -> int:
        """Its exit status."""
        return self.process.wait(limit)

    def _ask(self) -> Event | None:
        try:
            return ask_status(self._sandbox.endpoints, self.role)
        except ShammahError:
            return None
