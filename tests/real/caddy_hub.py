"""A Hub that the project did not write: Caddy serves a model's files and what a Hub says of them.

It lies in the environment of the other test servers (see `tests.real.servers`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.sandbox import until
from tests.real.servers import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LIMIT_S = 60.0
POLL_S = 0.01

_CADDYFILE = """\
{
	admin off
	auto_https off
	persist_config off
	log {
		output stderr
		level ERROR
	}
}
http://127.0.0.1:%(port)d {
	root * %(root)s
	log {
		output file %(log)s
		format json
	}
	map {http.request.orig_uri.path} {etag} {
		%(etags)s
	}
	@api path /api/models/*
	handle @api {
		try_files {path}.json
		header Content-Type application/json
		file_server
	}
	@res path_regexp res ^/([^/]+/[^/]+)/resolve/(main|[0-9a-f]{40})/(.+)$
	handle @res {
		rewrite * /files/{re.res.1}/{re.res.3}
		header >X-Repo-Commit %(commit)s
		header >X-Linked-Etag "\\"{etag}\\""
		header >ETag "\\"{etag}\\""
		file_server
	}
	handle {
		respond "hello" 200
	}
	handle_errors {
		header X-Error-Code EntryNotFound
		respond "not found" 404
	}
}
"""

_UNTIL_INPUT_ENDS = """
import subprocess, sys
process = subprocess.Popen(sys.argv[1:])
sys.stdin.read()
process.terminate()
process.wait()
"""


class Caddy:
    """The server. ``sent`` comes from its own log."""

    def __init__(self, endpoint: str, log: Path) -> None:
        self.endpoint = endpoint
        self._log = log

    def answers(self) -> list[tuple[str, int, int]]:
        """Path, status and bytes of every answer about a file."""
        entries = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [
            (entry["request"]["uri"], entry["status"], entry["size"])
            for entry in entries
            if "/resolve/" in entry["request"]["uri"]
        ]

    def sent(self) -> int:
        return sum(size for _, _, size in self.answers())

    def wait_sent(self, size: int) -> None:
        """Until the log tells of ``size`` bytes: it may be a moment behind."""
        until(lambda: self.sent() >= size, f"{size} bytes are in the log", LIMIT_S)
        assert self.sent() == size


@contextlib.contextmanager
def serving(directory: Path, model_id: str) -> Iterator[Caddy]:
    """Caddy with the files that lie in ``directory / "root" / "files" / model_id``."""
    root, log, port = directory / "root", directory / "access.log", free_port()
    etags = "\n\t\t".join(_describe(root, model_id))
    config = directory / "Caddyfile"
    filled = {"port": port, "root": root, "log": log, "etags": etags, "commit": COMMIT}
    config.write_text(_CADDYFILE % filled)
    program = [str(_caddy_program()), "run", "--config", str(config), "--adapter", "caddyfile"]
    with subprocess.Popen(
        [sys.executable, "-c", _UNTIL_INPUT_ENDS, *program],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None
        try:
            server = Caddy(f"http://127.0.0.1:{port}", log)
            _wait_for(server, process)
            yield server
        finally:
            process.stdin.close()


def _describe(root: Path, model_id: str) -> Iterator[str]:
    """Write what a Hub says about the model; yields the rows of the table of ETags."""
    tree: list[dict[str, object]] = []
    for path in sorted((root / "files" / model_id).iterdir()):
        content = path.read_bytes()
        etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": path.name, "size": len(content)}
        entry["oid"] = etag
        if path.suffix == ".safetensors":
            etag = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": etag, "size": len(content), "pointerSize": 130}
        tree.append(entry)
        yield f"/{model_id}/resolve/{COMMIT}/{path.name} {etag}"
    api = root / "api" / "models" / model_id
    answers = {"revision/main": {"id": model_id, "sha": COMMIT}, f"tree/{COMMIT}": tree}
    for name, document in answers.items():
        answer = api / f"{name}.json"
        answer.parent.mkdir(parents=True, exist_ok=True)
        answer.write_text(json.dumps(document))


def _caddy_program() -> Path:
    named = os.environ.get("SHAMMAH_TEST_SERVERS")
    python = Path(named) if named else REPOSITORY / ".venv-servers" / "bin" / "python"
    program = python.parent / "caddy"
    if not program.exists():
        pytest.fail(f"There is no {program}: run scripts/test once.")
    return program


def _wait_for(server: Caddy, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        assert process.poll() is None, "Caddy ended"
        assert time.monotonic() < deadline_s, "Caddy does not answer"
        with contextlib.suppress(OSError), opener.open(server.endpoint, timeout=5):
            return
        time.sleep(POLL_S)
