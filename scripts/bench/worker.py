"""An inference worker for a benchmark: its own process, in a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from shammah.bus.client import Peer, Task, new_request_id  # noqa: E402
from shammah.bus.endpoints import Endpoints, open_endpoints  # noqa: E402
from shammah.bus.messages import (  # noqa: E402
    ChatMessage,
    ClientInfo,
    Done,
    Event,
    Failed,
    Ready,
    Sampling,
    Stop,
    Token,
)
from shammah.settings.load import load_settings  # noqa: E402
from shammah.supervision.lifecycle import spawn, worker_spec  # noqa: E402

START_S = 120.0
GREEDY = Sampling(temperature=0.0)


@dataclass
class Home:
    """Where workers of one engine keep what they make; the runtime directory is beside it."""

    environ: dict[str, str]

    @classmethod
    def make(cls, directory: Path, engine: str) -> Home:
        home, runtime = directory / engine, directory / f"{engine}-run"
        home.mkdir(mode=0o700)
        runtime.mkdir(mode=0o700)
        (home / "config.toml").write_text(f'[inference]\nengine = "{engine}"\n')
        environ = dict(os.environ, SHAMMAH_HOME=str(home), XDG_RUNTIME_DIR=str(runtime))
        environ.pop("PYTHONDONTWRITEBYTECODE", None)  # nobody compiles at every start
        return cls(environ | {"HF_HUB_OFFLINE": "1"})

    @property
    def endpoints(self) -> Endpoints:
        return open_endpoints(self.environ)


class Worker:
    """Spawned when it is made, and attached; times are seconds since just before the exec."""

    def __init__(self, home: Home, model: str) -> None:
        spec = worker_spec(load_settings(home.environ, model), "inference", home.environ)
        self.ready_s = 0.0
        self._began = time.perf_counter()
        # As a frontend does it: the connection is there, and finds the worker as it binds.
        self.peer = Peer(home.endpoints, "inference", _CLIENT, self._on_change)
        self._began = time.perf_counter()
        self._process: subprocess.Popen[bytes] = spawn(spec)
        assert self.peer.wait_welcome(START_S) is not None, "the worker did not start"
        self.welcome_s = self.elapsed()

    def _on_change(self, event: Event | None) -> None:
        if event is not None and not self.ready_s and isinstance(event.status.state, Ready):
            self.ready_s = self.elapsed()

    def elapsed(self) -> float:
        return time.perf_counter() - self._began

    def ask(self, question: str, tokens: int, sampling: Sampling = GREEDY) -> Task:
        return self.peer.generate((ChatMessage("user", question),), sampling, tokens)

    def cpu_seconds(self) -> float:
        """Processor time of the worker so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self.peer.send(Stop(new_request_id()))
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.peer.close()


_CLIENT = ClientInfo("benchmark", os.getpid())


def first_token(task: Task) -> Token:
    for reply in task:
        assert not isinstance(reply, Failed), reply
        if isinstance(reply, Token):
            return reply
        assert not isinstance(reply, Done), "an answer without a token"
    raise AssertionError


@contextmanager
def scratch() -> Iterator[Path]:
    """Short enough for the paths of sockets."""
    with tempfile.TemporaryDirectory(prefix="sh-", dir="/tmp") as made, ExitStack():
        yield Path(made)
