"""A model in shards, from a web server that the project did not write, to an answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.command import run
from tests.fakes.sandbox import Sandbox, online
from tests.real.caddy_hub import Caddy, serving
from tests.real.local_hub import (
    ASK_PARIS,
    LOAD_S,
    PARIS,
    QWEN,
    WEIGHTS,
    kill_workers,
    split_weights,
)
from tests.real.models import starter

pytestmark = pytest.mark.timeout(400)

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
    with serving(tmp_path, QWEN) as server:
        online(monkeypatch, server.endpoint)
        yield server
        kill_workers(sandbox)


def test_shards_arrive_and_answer(caddy: Caddy, model: Path) -> None:
    ended = run("ask", "--model", "1.5B", ASK_PARIS, limit=LOAD_S)
    assert (ended.code, ended.out) == (0, PARIS), ended.err
    assert f"local: {QWEN} ·" in ended.err
    sizes = {path.name: path.stat().st_size for path in model.iterdir()}
    caddy.wait_sent(sum(sizes.values()))
    sent = {uri.rpartition("/")[2] for uri, status, _ in caddy.answers() if status in (200, 206)}
    assert sent == set(sizes)
    assert sum(name.endswith(f"-of-0000{SHARDS}.safetensors") for name in sent) == SHARDS
    verified = run("models", "verify", QWEN, "--hashes", limit=LOAD_S)
    assert (verified.code, verified.out) == (0, f"{QWEN}: complete\n"), verified.err
