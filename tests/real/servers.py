"""Real servers that speak the Messages API, as processes on loopback.

They live in an environment of their own (``.venv-servers``, made by ``scripts/test``), since
their dependencies are not Shammah's. ``SHAMMAH_TEST_SERVERS`` names another Python that has
them, ``SHAMMAH_TEST_GGUF`` another model file.

A server ends when its standard input does, so none outlives the tests, however those end.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0
POLL_S = 0.05

_LEAVE_WITH_PARENT = """
import os, sys, threading
def leave_with_parent():
    sys.stdin.buffer.read()
    os._exit(0)
threading.Thread(target=leave_with_parent, daemon=True).start()
"""

_MESSAGES_API = """
import threading
import xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[2]
parameters.model_alias = {"smollm2-135m"}
parameters.chat_template = sys.argv[3]
parameters.sampling.temp = 0.0
parameters.hostnames = ["127.0.0.1"]
parameters.port = int(sys.argv[1])
parameters.n_parallel = 2
parameters.n_ctx = 4096
parameters.warmup = False
parameters.cpuparams.n_threads = 1
parameters.cpuparams_batch.n_threads = 2
server = xllamacpp.Server(parameters)
threading.Event().wait()
"""

# The model's own template, but for the default system prompt: with its own one, which names the
# model, this quantisation answers simple questions in odd French.
_CHAT_TEMPLATE = """\
{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

_LLMOCK = """
import uvicorn
from llmock.main import create_app
uvicorn.run(create_app(), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
"""


@dataclass(frozen=True)
class FaultyServer:
    """llmock: answers with made-up text, and breaks as it is told to."""

    origin: str

    @property
    def base_url(self) -> str:
        return f"{self.origin}/anthropic"

    def script(self, *behaviours: dict[str, Any]) -> None:
        """What the next requests meet, for instance ``{"type": "fail", "status": 429}``."""
        self._call("POST", "/_llmock/scenario", {"behaviors": list(behaviours)})

    def pending(self) -> list[dict[str, Any]]:
        """Behaviours that no request has met yet."""
        pending: list[dict[str, Any]] = self._call("GET", "/_llmock/scenario")["pending"]
        return pending

    def requests(self, count: int = 1) -> list[dict[str, Any]]:
        """Everything asked since the last `reset`, once ``count`` have ended and, if that takes
        no longer than 2 s, the others."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            found: list[dict[str, Any]] = self._call("GET", "/_llmock/requests")["requests"]
            if len(found) >= count or time.monotonic() > deadline:
                return found

    def reset(self) -> None:
        """Forget requests and behaviours."""
        self._call("POST", "/_llmock/reset")

    def _call(self, method: str, path: str, document: object = None) -> Any:
        body = None if document is None else json.dumps(document).encode()
        return json.loads(_http(method, self.origin + path, body))


@contextlib.contextmanager
def llmock_server() -> Iterator[FaultyServer]:
    """A server that breaks on demand."""
    port = free_port()
    with _process(_LLMOCK, str(port)) as process:
        origin = f"http://127.0.0.1:{port}"
        _wait_until_healthy(process, origin)
        yield FaultyServer(origin)


@contextlib.contextmanager
def messages_api_server(port: int = 0) -> Iterator[str]:
    """A server that answers with a real model (SmolLM2-135M, always the same words to the same
    conversation); gives its base URL. ``port``: its own; 0: any."""
    port = port or free_port()
    with _process(_MESSAGES_API, str(port), str(_gguf()), _CHAT_TEMPLATE) as process:
        base_url = f"http://127.0.0.1:{port}"
        _wait_until_healthy(process, base_url)
        yield base_url


@contextlib.contextmanager
def _process(program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [servers_python(), "-c", _LEAVE_WITH_PARENT + program, *arguments],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        except ServerNotStartedError:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))
            raise
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class ServerNotStartedError(Exception):
    """A server ended or stayed silent; its output is on stderr."""


def _wait_until_healthy(process: subprocess.Popen[bytes], origin: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerNotStartedError(f"it ended with status {process.returncode}")
        with contextlib.suppress(OSError):  # refused, or 503 while the model loads
            _http("GET", f"{origin}/health")
            return
        time.sleep(POLL_S)
    raise ServerNotStartedError(f"not healthy after {START_TIMEOUT_S:.0f} s")


def _http(method: str, url: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, data=body, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=ANSWER_TIMEOUT_S) as response:
        content: bytes = response.read()
    return content


def free_port() -> int:
    """One that nobody uses, and that nobody is given while its server starts: those that the
    system hands out lie above."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    pytest.fail("no port is free")


def servers_python() -> str:
    """The Python of the test servers, which has OpenAI's SDK as well."""
    named = os.environ.get("SHAMMAH_TEST_SERVERS")
    python = Path(named) if named else REPOSITORY / ".venv-servers" / "bin" / "python"
    if not python.exists():
        pytest.fail(f"No Python with the test servers at {python}: run scripts/test once.")
    return str(python)


def _gguf() -> Path:
    named = os.environ.get("SHAMMAH_TEST_GGUF")
    own = Path(sys.prefix) / "share" / "shammah" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    path = Path(named) if named else own
    if not path.exists():
        pytest.fail(f"No model file at {path}: run scripts/test once.")
    return path
