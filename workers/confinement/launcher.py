"""Starts other workers for one that is confined, whose children would be as confined as it is.

A process of its own, forked before the worker is confined. It takes no command but the name of a
role: whatever a worker was made to do, nothing else can be started through it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping
from typing import Any

from shammah.bus.endpoints import Endpoints
from shammah.errors import ShammahError
from shammah.settings.model import Settings
from shammah.supervision import lifecycle
from shammah.supervision.lifecycle import WorkerSpec

MAY_START = {
    "inference": ("download",),
    "gateway": ("inference", "servers", "cloud", "download"),
}
"""Role to the roles whose workers it starts."""

_MOST_BYTES = 64 * 1024


def fork_launcher(
    role: str, settings: Settings, environ: Mapping[str, str], endpoints: Endpoints
) -> None:
    """Have the workers that ``role`` starts started by a launcher, which ends with this process.

    To be called before there are other threads, and before this process holds a lock or listens:
    the launcher would hold them, too.
    """
    if role not in MAY_START:
        return
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        try:
            # Ctrl-C is the worker's affair. Handlers, unlike SIG_IGN, are not inherited.
            signal.signal(signal.SIGINT, lambda number, frame: None)
            _Launcher(MAY_START[role], settings, dict(environ), endpoints).serve(theirs)
        finally:
            os._exit(0)
    theirs.close()
    lifecycle.children.launcher = _Line(ours)


class _Launcher:
    """In the process of its own."""

    def __init__(
        self,
        roles: tuple[str, ...],
        settings: Settings,
        environ: Mapping[str, str],
        endpoints: Endpoints,
    ) -> None:
        self._roles = roles
        self._settings = settings
        self._environ = environ
        self._endpoints = endpoints
        self._started: dict[int, subprocess.Popen[bytes]] = {}

    def serve(self, line: socket.socket) -> None:
        """Answer until the worker has ended."""
        while asked := line.recv(_MOST_BYTES):
            try:
                answer: dict[str, Any] = {"value": self._answer(*json.loads(asked))}
            except ShammahError as error:
                answer = {"failed": [error.code, error.message, error.hint]}
            except Exception as error:
                answer = {"failed": ["internal", f"The launcher failed: {error}", ""]}
            line.send(json.dumps(answer).encode())

    def _answer(self, verb: str, role: str, number: int) -> int | bool | None:
        if role not in self._roles:
            raise ValueError(f"a {role} worker")
        if verb == "start":
            spec = lifecycle.worker_spec(self._settings, role, self._environ)
            child = lifecycle.spawn(spec)
            self._started[child.pid] = child
            return child.pid
        if verb == "poll":
            return self._started[number].poll()
        return lifecycle.signal_holder(self._endpoints.lock(role), signal.Signals(number))


class _Line:
    """In the worker: what it asks the launcher (`shammah.supervision.lifecycle.Launcher`)."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._lock = threading.Lock()  # links start their workers side by side

    def start(self, spec: WorkerSpec) -> _Launched:
        return _Launched(self, spec.role, self.ask("start", spec.role, 0))

    def signal(self, role: str, number: int) -> bool:
        return bool(self.ask("signal", role, number))

    def ask(self, verb: str, role: str, number: int) -> Any:
        """
        Raises:
            ShammahError: ``worker_start_failed``: the launcher is gone; or as it says.
        """
        try:
            with self._lock:
                self._line.send(json.dumps([verb, role, number]).encode())
                answer = json.loads(self._line.recv(_MOST_BYTES))
        except (OSError, ValueError) as error:
            why = "The process that starts other workers for this one is gone."
            raise ShammahError("worker_start_failed", why, "`shammah stop`, and again.") from error
        if "failed" in answer:
            raise ShammahError(*answer["failed"])
        return answer["value"]


class _Launched:
    """A worker that the launcher has started, as `subprocess.Popen` shows one."""

    def __init__(self, line: _Line, role: str, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._line = line
        self._role = role

    def poll(self) -> int | None:
        """Its exit status, once it has ended."""
        if self.returncode is None:
            self.returncode = self._line.ask("poll", self._role, self.pid)
        return self.returncode
