"""Downloads from a web server that the project did not write: Caddy, with a Hub's files."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from tests.fakes.sandbox import online
from tests.real.caddy_hub import COMMIT, LIMIT_S, Caddy, serving
from tests.real.test_download_faults import _quiet_library as _quiet_library
from workers.download.downloads import Downloads
from workers.download.limits import MIB, Limits

pytestmark = pytest.mark.timeout(400)

MODEL = "acme/tiny"
WEIGHTS = "model.safetensors"
FILES = {
    "config.json": b'{"model_type": "qwen2"}',
    "tokenizer.json": random.Random(1).randbytes(50_000),
    WEIGHTS: random.Random(2).randbytes(12 * MIB) * 3,
}
LIMITS = Limits(segment_bytes=3 * MIB, disk_reserve=0)

_FETCH = """
import os, signal, sys, threading, time
from pathlib import Path
from workers.download.downloads import Downloads
from workers.download.limits import Limits
endpoint, cache, kill_after_s = sys.argv[1:]
begun = threading.Event()
def kill():
    begun.wait()
    time.sleep(float(kill_after_s))
    os.kill(os.getpid(), signal.SIGKILL)
if float(kill_after_s) >= 0:
    threading.Thread(target=kill, daemon=True).start()
limits = Limits(connections=1, segment_bytes=1048576, disk_reserve=0)
downloads = Downloads(Path(cache), limits, endpoint=endpoint, token=False)
downloads.fetch("acme/tiny", on_progress=lambda _progress: begun.set())
downloads.close()
"""


@pytest.fixture
def caddy(tmp_path: Path) -> Iterator[Caddy]:
    directory = tmp_path / "root" / "files" / MODEL
    directory.mkdir(parents=True)
    for name, content in FILES.items():
        (directory / name).write_bytes(content)
    with serving(tmp_path, MODEL) as server:
        yield server


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
    caddy.wait_sent(sum(len(content) for content in FILES.values()))
    statuses = [status for uri, status, _ in caddy.answers() if uri.endswith(WEIGHTS)]
    assert statuses == [206] * 12


def test_kills_at_full_speed(caddy: Caddy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing slows this server down, so every buffer on the way is as full as it gets: a kill
    costs what was asked for and has not been read."""
    online(monkeypatch, caddy.endpoint)
    rng, kills = random.Random(7), 0
    program = [sys.executable, "-c", _FETCH, caddy.endpoint, str(tmp_path / "hub")]
    for after_s in (0.0, *(rng.uniform(0.0, 0.08) for _ in range(4))):
        ended = subprocess.run([*program, str(after_s)], timeout=LIMIT_S, check=False)
        kills += ended.returncode == -signal.SIGKILL
    assert kills
    subprocess.run([*program, "-1"], timeout=LIMIT_S, check=True)
    check_whole(tmp_path / "hub" / "models--acme--tiny" / "snapshots" / COMMIT)
    assert caddy.sent() <= sum(len(content) for content in FILES.values()) + kills * MIB
