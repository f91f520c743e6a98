"""The proof: a confined worker tries what its role does not need, and tells what the kernel said.

No trial leaves anything behind, whatever becomes of it: nothing is read, written or sent.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from shammah.bus.messages import Prove, Proved, Trial
from shammah.settings.model import Settings
from workers.confinement import Confinement, Request, confine, confine_thread
from workers.confinement.filter import Network
from workers.confinement.policy import Places, policy_for

ALLOWED = "allowed"

_REFUSALS = (errno.EPERM, errno.EACCES)
"""seccomp's answer, and Landlock's to whoever opens or connects."""

_CONNECT_S = 2.0
_PTRACE_ATTACH, _NOBODY = 16, 2**22 + 1
"""No process has such a number, so that nothing happens where it is allowed."""


class Confined:
    """A worker's confinement, from when it is entered, and the proof of it.

    Args:
        runtime: the directory of sockets and locks.
    """

    def __init__(
        self, role: str, settings: Settings, environ: Mapping[str, str], runtime: Path
    ) -> None:
        self._role = role
        self._settings = settings
        self._environ = dict(environ)
        self._runtime = runtime
        self._held = Confinement()

    def enter(self) -> None:
        """See `workers.confinement.confine`."""
        self._held = confine(self._role, self._settings, self._environ, self._runtime)

    @property
    def holds(self) -> tuple[str, ...]:
        return self._held.holds

    def narrow(self, request: Request) -> None:
        """Hold this thread, and those that it starts, to the files of one request."""
        confine_thread(self._held, self._settings, self._environ, request)

    def prove(self, asked: Prove) -> Proved:
        """Try it all; of a train worker as a thread does that has a training."""
        if self._role != "train":
            return self._prove(asked)
        found: list[Proved] = []

        def work() -> None:
            self.narrow(Request())
            found.append(self._prove(asked))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return found[0]

    def _prove(self, asked: Prove) -> Proved:
        needs = policy_for(self._role, self._settings, self._environ, self._runtime, Places())
        home, own = self._settings.home, self._role != "gateway"
        trials = [
            ("open a file of yours", lambda: _open(asked.file), True),
            ("change config.toml", lambda: _change(home / "config.toml"), own),
            ("list the home of Shammah", lambda: os.listdir(home), own),
            ("connect elsewhere", lambda: _connect(asked.port), needs.ports is not None),
            ("open a UDP socket", _open_datagrams, needs.network is not Network.NAMES),
            ("start a program", _start_program, True),
            ("trace a process", _trace, True),
            ("read a process's memory", lambda: _open(f"/proc/{asked.pid}/mem"), True),
            ("signal a process", lambda: os.kill(asked.pid, 0), True),
        ]
        return Proved(
            asked.request_id,
            tuple(_try(*trial) for trial in trials),
            self._held.holds,
            self._held.missing,
        )


def _try(what: str, act: Callable[[], object], due: bool) -> Trial:
    try:
        act()
    except OSError as error:
        answered = errno.errorcode.get(error.errno or 0, str(error))
        return Trial(what, answered, error.errno in _REFUSALS, due)
    return Trial(what, ALLOWED, False, due)


def _open(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def _change(path: Path) -> None:
    before = path.exists()
    os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
    if not before:
        path.unlink()


def _connect(port: int) -> None:
    with socket.socket() as trying:
        trying.settimeout(_CONNECT_S)
        trying.connect(("127.0.0.1", port))


def _open_datagrams() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()


def _start_program() -> None:
    started = os.posix_spawn("/bin/sh", ["sh", "-c", ":"], {})
    os.waitpid(started, 0)


def _trace() -> None:
    library = ctypes.CDLL(None, use_errno=True)
    library.ptrace.restype = ctypes.c_long
    if library.ptrace(ctypes.c_long(_PTRACE_ATTACH), ctypes.c_long(_NOBODY), None, None) < 0:
        number = ctypes.get_errno()
        if number in _REFUSALS:
            raise OSError(number, os.strerror(number))
