"""Downloads from a web server that the project did not write: Caddy, with a Hub's files.

It lies in the environment of the other test servers (see `tests.workers.servers`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from tests.standins.sandbox import online
from tests.workers.test_download_faults import _quiet_library as _quiet_library
from workers.download.downloads import Downloads
from workers.download.limits import MIB, Limits

pytestmark = pytest.mark.timeout(90)

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = "acme/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "model.safetensors"
FILES = {
    "config.json": b'{"model_type": "qwen2"}',
    "tokenizer.json": random.Random(1).randbytes(50_000),
    WEIGHTS: random.Random(2).randbytes(12 * MIB) * 3,
}
LIMITS = Limits(segment_bytes=3 * MIB, disk_reserve=0)
LIMIT_S = 30.0
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

_FETCH = """
import sys
from pathlib import Path
from workers.download.downloads import Downloads
from workers.download.limits import Limits
endpoint, cache = sys.argv[1:]
limits = Limits(connections=1, segment_bytes=1048576, disk_reserve=0)
downloads = Downloads(Path(cache), limits, endpoint=endpoint, token=False)
downloads.fetch("acme/tiny", on_progress=lambda _progress: print("begun", flush=True))
downloads.close()
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


def _caddy_program() -> Path:
    named = os.environ.get("SHAMMAH_TEST_SERVERS")
    python = Path(named) if named else REPOSITORY / ".venv-servers" / "bin" / "python"
    program = python.parent / "caddy"
    if not program.exists():
        pytest.fail(f"There is no {program}: run scripts/test once.")
    return program


def _write_files(root: Path) -> str:
    """A Hub's answers as files; returns the table of ETags."""
    tree, etags = [], []
    for path, content in FILES.items():
        target = root / "files" / MODEL / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        sha256 = hashlib.sha256(content).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": git}
        if path == WEIGHTS:
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
        tree.append(entry)
        etag = sha256 if path == WEIGHTS else git
        etags.append(f"/{MODEL}/resolve/{COMMIT}/{path} {etag}")
    api = root / "api" / "models" / MODEL
    for name, document in (
        ("revision/main", {"id": MODEL, "sha": COMMIT}),
        (f"tree/{COMMIT}", tree),
    ):
        answer = api / f"{name}.json"
        answer.parent.mkdir(parents=True, exist_ok=True)
        answer.write_text(json.dumps(document))
    return "\n\t\t".join(etags)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def caddy(tmp_path: Path) -> Iterator[Caddy]:
    root, log, port = tmp_path / "root", tmp_path / "access.log", _free_port()
    etags = _write_files(root)
    config = tmp_path / "Caddyfile"
    filled = {"port": port, "root": root, "log": log, "etags": etags, "commit": COMMIT}
    config.write_text(_CADDYFILE % filled)
    program = [str(_caddy_program()), "run", "--config", str(config), "--adapter", "caddyfile"]
    with subprocess.Popen(
        [sys.executable, "-c", _UNTIL_INPUT_ENDS, *program],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            server = Caddy(f"http://127.0.0.1:{port}", log)
            _wait_for(server, process)
            yield server
        finally:
            assert process.stdin is not None
            process.stdin.close()


def _wait_for(server: Caddy, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        assert process.poll() is None, "Caddy ended"
        assert time.monotonic() < deadline_s, "Caddy does not answer"
        with contextlib.suppress(OSError), opener.open(server.endpoint, timeout=5):
            return
        time.sleep(POLL_S)


def check_whole(snapshot: Path) -> None:
    assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == FILES


def test_a_model_arrives_in_segments(caddy: Caddy, tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    downloads = Downloads(cache, LIMITS, endpoint=caddy.endpoint, token=False)
    snapshot = downloads.fetch(MODEL)
    check_whole(snapshot)
    assert snapshot.name == COMMIT
    assert snapshot_download(MODEL, cache_dir=cache, local_files_only=True) == str(snapshot)
    downloads.close()
    statuses = [status for uri, status, _ in caddy.answers() if uri.endswith(WEIGHTS)]
    assert statuses == [206] * 12
    assert caddy.sent() == sum(len(content) for content in FILES.values())


def test_kills_at_full_speed(caddy: Caddy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing slows this server down, so every buffer on the way is as full as it gets: a kill
    costs what was asked for and has not been read."""
    online(monkeypatch, caddy.endpoint)
    rng, kills = random.Random(7), 0
    program = [sys.executable, "-c", _FETCH, caddy.endpoint, str(tmp_path / "hub")]
    for _ in range(5):
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            if not process.stdout.readline():
                break  # the last one had brought everything
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0.0, 0.08))
            process.kill()
        kills += process.returncode == -signal.SIGKILL
    assert kills
    subprocess.run(program, stdout=subprocess.DEVNULL, timeout=LIMIT_S, check=True)
    check_whole(tmp_path / "hub" / "models--acme--tiny" / "snapshots" / COMMIT)
    assert caddy.sent() <= sum(len(content) for content in FILES.values()) + kills * MIB
