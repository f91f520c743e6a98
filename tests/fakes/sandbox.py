"""A person's whole world for one test: home, runtime directory, environment, processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from shammah.bus.endpoints import ROLES, Endpoints, lock_holder
from shammah.repl.welcome import MARKER
from shammah.supervision.identity import NETWORK_VARIABLES

LIMIT_S = 60.0
"""How long anything may take that must happen. A limit, never an expectation."""

POLL_S = 0.01

FORGOTTEN = ("ANTHROPIC_", "HF_", "HUGGING", "SHAMMAH_", "TRANSFORMERS_", "XDG_")
KEPT = "SHAMMAH_TEST_"
UNSET = (
    *("COLUMNS", "LINES", "NO_COLOR", "TERM", "PYTHONIOENCODING", "PYTHONWARNINGS"),
    *NETWORK_VARIABLES,
)

OUR_THREADS = ("attach-", "bus-", "editor", "history", "routing", "work")

Found = TypeVar("Found")


def until(look: Callable[[], Found | None], what: str, limit: float = LIMIT_S) -> Found:
    """What ``look`` finds, as soon as it finds something true."""
    deadline = time.monotonic() + limit
    while True:
        late = time.monotonic() > deadline  # before the look, which is the last then
        if found := look():
            return found
        if late:
            raise TimeoutError(f"not within {limit:g} s: {what}")
        time.sleep(POLL_S)


def online(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Let the programs that this test starts use the Hub at ``endpoint``, and no other."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", endpoint)


@dataclass(frozen=True)
class Sandbox:
    """Directories of their own, short enough for socket paths."""

    root: Path

    @classmethod
    def make(cls) -> Sandbox:
        sandbox = cls(Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp")))
        for directory in (sandbox.home, sandbox.shammah_home, sandbox.xdg):
            directory.mkdir(mode=0o700)
        # No welcome, whatever the settings: nothing can be remembered here. On a busy machine it
        # would come above a line that is being typed. A test of the first run takes this away.
        (sandbox.shammah_home / MARKER).mkdir()
        return sandbox

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def shammah_home(self) -> Path:
        return self.root / "kept"

    @property
    def xdg(self) -> Path:
        return self.root / "run"

    @property
    def endpoints(self) -> Endpoints:
        """The same paths as `open_endpoints`, which makes the directory."""
        runtime = self.xdg / "shammah"
        runtime.mkdir(mode=0o700, exist_ok=True)
        return Endpoints(runtime)

    def variables(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "SHAMMAH_HOME": str(self.shammah_home),
            "XDG_RUNTIME_DIR": str(self.xdg),
            "TERM": "xterm-256color",
            "SHAMMAH_PROGRAM": "shammah",  # hints name it so, wherever it lies
            # A test that wants a Hub names one and takes this back (`online`).
            "HF_HUB_OFFLINE": "1",
        }

    def log(self, role: str = "inference") -> str:
        path = self.shammah_home / "logs" / f"{role}.log"
        return path.read_text() if path.exists() else ""

    def holder(self, role: str = "inference") -> int | None:
        return lock_holder(self.xdg / "shammah" / f"{role}.lock")

    def holders(self) -> dict[str, int]:
        return {role: pid for role in ROLES if (pid := self.holder(role)) is not None}

    def processes(self) -> list[psutil.Process]:
        """Every living process of this world, whoever started it.

        All of ours begin with the runtime directory, so without one there is nothing to find.
        """
        if not (self.xdg / "shammah").exists():
            return []
        return [process for process in psutil.process_iter() if self._owns(process)]

    def _owns(self, process: psutil.Process) -> bool:
        try:
            return (
                process.pid != os.getpid()
                and process.environ().get("XDG_RUNTIME_DIR") == str(self.xdg)
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            return False

    def leaks(self) -> list[str]:
        """Processes and threads that a test has left behind; the processes are ended."""
        left, found = [], self._linger(self.processes)
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.append(f"process {process.pid}: {' '.join(process.cmdline())}")
                process.kill()
        psutil.wait_procs(found, LIMIT_S)  # what it was writing is written, or never will be
        threads = self._linger(
            lambda: [t.name for t in threading.enumerate() if t.name.startswith(OUR_THREADS)]
        )
        return left + [f"thread {name}" for name in threads]

    @staticmethod
    def _linger(find: Callable[[], list[Found]], limit: float = 10.0) -> list[Found]:
        """What is still there after it had a moment to go."""
        deadline = time.monotonic() + limit
        while (found := find()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return found

    def remove(self) -> list[str]:
        """To be called when nobody writes there any more; what could not be removed."""
        for parent, directories, _ in os.walk(self.root):
            for path in (os.path.join(parent, name) for name in directories):
                if not os.path.islink(path):
                    os.chmod(path, 0o700)  # a test may have locked it
        shutil.rmtree(self.root, ignore_errors=True)
        return [f"file {path}" for path in (self.root, *self.root.rglob("*")) if path.exists()]
