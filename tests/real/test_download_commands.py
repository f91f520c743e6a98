"""``shammah models`` against a Hub on loopback: what a person types, and what is on the disk."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.hub import StandInHub
from tests.fakes.sandbox import Sandbox, online

MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
SHAMMAH = str(Path(sys.prefix, "bin", "shammah"))
SIZE = 6 * 1024 * 1024
LIMIT_S = 60


def weights(size: int = SIZE) -> bytes:
    """A safetensors file of one tensor."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
    return len(header).to_bytes(8, "little") + header.encode() + bytes(range(256)) * (size // 256)


FILES = {"config.json": b'{"model_type": "qwen2"}', "model.safetensors": weights()}


@pytest.fixture
def hub(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """The only Hub that the program knows."""
    with StandInHub(FILES, model_id=MODEL, send_buffer=16384) as hub:
        online(monkeypatch, hub.endpoint)
        yield hub
        run("stop")


def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [SHAMMAH, *arguments], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    assert ended.returncode == code, ended.stderr
    return ended


def test_list_verify_and_rm(hub: StandInHub) -> None:
    run("models", "pull", MODEL)
    (listed,) = json.loads(run("models", "list", "--json").stdout)["models"]
    assert (listed["model"], listed["verified"]) == (MODEL, True)
    assert run("models", "verify", MODEL, "--hashes").stdout == f"{MODEL}: complete\n"
    run("models", "rm", MODEL)
    assert "No models yet." in run("models", "list").stdout
    assert "is not in the cache" in run("models", "rm", MODEL, code=1).stderr


def test_a_damaged_file_is_found_and_fetched_alone(hub: StandInHub) -> None:
    directory = Path(run("models", "pull", MODEL).stdout.strip())
    path = (directory / "model.safetensors").resolve()
    path.write_bytes(b"\0" * path.stat().st_size)
    assert "model.safetensors: hash" in run("models", "verify", MODEL, "--hashes", code=1).stdout
    assert "model.safetensors: hash, repaired" in run("models", "verify", MODEL, "--repair").stdout
    assert path.read_bytes() == FILES["model.safetensors"]


@pytest.mark.parametrize(
    ("model", "says"),
    [("acme/nothing", "There is no model acme/nothing"), ("nonsense", "There is no model")],
)
def test_what_is_not_there_is_one_clear_error(hub: StandInHub, model: str, says: str) -> None:
    ended = subprocess.run(
        [SHAMMAH, "models", "pull", model], capture_output=True, text=True, check=False
    )
    assert ended.returncode in (1, 2)
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
