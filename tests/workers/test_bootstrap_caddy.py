"""A model in shards, from a web server that the project did not write, to an answer."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.standins.command import run
from tests.standins.sandbox import Sandbox, online
from tests.workers.local_hub import (
    ASK_PARIS,
    LOAD_S,
    PARIS,
    QWEN,
    WEIGHTS,
    kill_workers,
    split_weights,
)
from tests.workers.models import starter
from tests.workers.test_download_caddy import (
    _CADDYFILE,
    _UNTIL_INPUT_ENDS,
    COMMIT,
    Caddy,
    _caddy_program,
    _free_port,
    _wait_for,
)

pytestmark = pytest.mark.timeout(240)

SHARDS = 4


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The starter with its weights in shards, where Caddy will find its files."""
    directory = tmp_path / "root" / "files" / QWEN
    directory.mkdir(parents=True)
    for path in starter().iterdir():
        if path.name not in (WEIGHTS, "shammah-manifest.json"):
            (directory / path.name).symlink_to(path)
    split_weights(directory, SHARDS)
    return directory


@pytest.fixture
def caddy(
    model: Path, tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Caddy]:
    root, log, port = tmp_path / "root", tmp_path / "access.log", _free_port()
    etags = "\n\t\t".join(_describe(root, model))
    config = tmp_path / "Caddyfile"
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
            online(monkeypatch, server.endpoint)
            yield server
        finally:
            kill_workers(sandbox)
            process.stdin.close()


def _describe(root: Path, model: Path) -> Iterator[str]:
    """Write what a Hub says about the model; yields the rows of the table of ETags."""
    tree: list[dict[str, object]] = []
    for path in sorted(model.iterdir()):
        content = path.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": path.name, "size": len(content)}
        etag = entry["oid"] = git
        if path.suffix == ".safetensors":
            etag = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": etag, "size": len(content), "pointerSize": 130}
        tree.append(entry)
        yield f"/{QWEN}/resolve/{COMMIT}/{path.name} {etag}"
    api = root / "api" / "models" / QWEN
    answers = {"revision/main": {"id": QWEN, "sha": COMMIT}, f"tree/{COMMIT}": tree}
    for name, document in answers.items():
        answer = api / f"{name}.json"
        answer.parent.mkdir(parents=True, exist_ok=True)
        answer.write_text(json.dumps(document))


def test_shards_arrive_and_answer(caddy: Caddy, model: Path) -> None:
    ended = run("ask", "--model", "1.5B", ASK_PARIS, limit=LOAD_S)
    assert (ended.code, ended.out) == (0, PARIS), ended.err
    assert f"local: {QWEN} ·" in ended.err
    sizes = {path.name: path.stat().st_size for path in model.iterdir()}
    assert caddy.sent() == sum(sizes.values())
    sent = {uri.rpartition("/")[2] for uri, status, _ in caddy.answers() if status in (200, 206)}
    assert sent == set(sizes)
    assert sum(name.endswith(f"-of-0000{SHARDS}.safetensors") for name in sent) == SHARDS
    verified = run("models", "verify", QWEN, "--hashes", limit=LOAD_S)
    assert (verified.code, verified.out) == (0, f"{QWEN}: whole\n"), verified.err
