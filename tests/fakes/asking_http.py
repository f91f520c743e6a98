"""A gateway as a process, and what asks it by HTTP."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.fakes.sandbox import LIMIT_S, Sandbox

TOKEN_FILE = "gateway.token"
HASTY = str(Path(__file__).with_name("hasty_gateway.py"))


@dataclass(frozen=True)
class Answered:
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def document(self) -> Any:
        return json.loads(self.text)

    @property
    def events(self) -> list[Any]:
        """The documents of a stream."""
        lines = (line for line in self.text.splitlines() if line.startswith("data: {"))
        return [json.loads(line.removeprefix("data: ")) for line in lines]


@dataclass(frozen=True)
class Endpoint:
    """Where a gateway listens, and its token."""

    host: str
    port: int
    token: str

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @contextmanager
    def open(
        self, path: str, document: Any = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """The response to a request, while it comes."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=LIMIT_S)
        said = {"Authorization": f"Bearer {self.token}", **(headers or {})}
        body = None if document is None else json.dumps(document)
        try:
            connection.request("GET" if body is None else "POST", path, body, said)
            yield connection.getresponse()
        finally:
            connection.close()

    def ask(
        self, path: str, document: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answered:
        with self.open(path, document, headers) as response:
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answered(response.status, names, response.read().decode())


def start_gateway(sandbox: Sandbox, *options: str) -> Endpoint:
    """Start one in the background, at a free port."""
    command = [sys.executable, "-P", "-m", "shammah", "serve", "--background", "--port", "0"]
    said = subprocess.run(
        [*command, *options], capture_output=True, text=True, check=True, timeout=LIMIT_S
    )
    return endpoint_of(sandbox, said.stdout)


@contextmanager
def hasty_gateway(sandbox: Sandbox, *options: str) -> Iterator[Endpoint]:
    """One that has little patience (`tests/fakes/hasty_gateway.py`), in the foreground."""
    command = [sys.executable, "-P", HASTY, "gateway", "--foreground", "--keep-alive", "-1"]
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield endpoint_of(sandbox, process.stdout.readline())
        finally:
            process.send_signal(signal.SIGINT)
            assert not process.wait(LIMIT_S)


def endpoint_of(sandbox: Sandbox, said: str) -> Endpoint:
    """Where it listens, by the first line that it ``said``."""
    where = urlsplit(said.split()[2].rstrip("."))
    token = (sandbox.shammah_home / TOKEN_FILE).read_text().strip()
    return Endpoint(where.hostname or "", where.port or 0, token)


def chat(*said: str, model: str = "auto", **more: Any) -> dict[str, Any]:
    """A request of OpenAI's, in which user and assistant speak in turns."""
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(said)]
    return {"model": model, "messages": messages, **more}
