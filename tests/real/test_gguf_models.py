"""GGUF files from the command line: those of other programs and those of the Hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shammah.models.footprint import HEADROOM_BYTES, LIBRARIES_BYTES
from shammah.settings.load import load_settings
from tests.fakes.gguf_files import TINY, gguf_file
from tests.fakes.hub import StandInHub
from tests.fakes.sandbox import Sandbox, online
from tests.real.test_download_commands import run
from tests.unit.models.test_gguf_files import pull, put

REPOSITORY, FILE = "acme/tiny-GGUF", "tiny.Q4_K_M.gguf"
CONTENT = gguf_file(TINY)


@pytest.fixture
def hub(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    files = {FILE: CONTENT, "tiny.Q8_0.gguf": CONTENT + bytes(32), "README.md": b"many"}
    with StandInHub(files, model_id=REPOSITORY) as hub:
        online(monkeypatch, hub.endpoint)
        yield hub
        run("stop")


@pytest.fixture
def other_programs(sandbox: Sandbox) -> list[Path]:
    """A model of ollama and one of LM Studio."""
    store = sandbox.home / ".ollama" / "models"
    return [
        pull(store, "registry.ollama.ai/library/tiny/latest", "ollama's"),
        put(sandbox.home / ".lmstudio/models/acme/tiny/tiny.Q8_0.gguf", "LM Studio's"),
    ]


def test_the_list_has_every_origin(hub: StandInHub, other_programs: list[Path]) -> None:
    run("models", "pull", f"{REPOSITORY}:{FILE}")
    rows = run("models", "list").stdout.splitlines()
    listed = {row[2:].split()[0]: " ".join(row.split()[3:]) for row in rows[1:5]}
    assert listed[f"{REPOSITORY}:{FILE}"].endswith("verified")
    assert "Hub" in listed[f"{REPOSITORY}:{FILE}"]
    assert "ollama" in listed["ollama:tiny:latest"]
    assert "LM Studio" in listed["lmstudio:acme/tiny"]
    found = json.loads(run("models", "list", "--json").stdout)
    (cached,) = found["models"]
    assert (cached["model"], cached["origin"]) == (f"{REPOSITORY}:{FILE}", "Hub")
    assert {one["model"]: one["origin"] for one in found["elsewhere"]} == {
        "ollama:tiny:latest": "ollama",
        "lmstudio:acme/tiny": "LM Studio",
    }
    assert {one["path"] for one in found["elsewhere"]} == {*map(str, other_programs)}


def test_the_default_is_marked(hub: StandInHub, other_programs: list[Path]) -> None:
    said = run("models", "use", "ollama:tiny").stdout
    assert f"It is in {other_programs[0]}.\n" in said
    assert load_settings(os.environ).model == "ollama:tiny"
    assert "* ollama:tiny:latest" in run("models", "list").stdout


def test_a_file_is_planned_by_its_size(
    hub: StandInHub, other_programs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.gguf").write_bytes(CONTENT)
    monkeypatch.chdir(tmp_path)
    for name, size in (
        ("tiny.gguf", len(CONTENT)),
        (str(tmp_path), len(CONTENT)),
        ("ollama:tiny", len("ollama's")),
        ("lmstudio:acme/tiny", len("LM Studio's")),
    ):
        told = json.loads(run("models", "plan", "--json", name).stdout)
        assert (told["total"], told["missing"], told["verdict"]) == (size, 0, "fits")
        memory = told["memory"]
        assert (memory["weights"], memory["dtype"], memory["context_length"]) == (size, "GGUF", 0)
        assert memory["least"] == size + LIBRARIES_BYTES + HEADROOM_BYTES
    assert "at least" in run("models", "plan", "tiny.gguf").stdout
    assert "tiny.gguf is not from the Hub" in run("models", "verify", "tiny.gguf", code=2).stderr


def test_one_of_the_hub_is_planned_fetched_checked_and_removed(hub: StandInHub) -> None:
    name = f"{REPOSITORY}:{FILE}"
    told = json.loads(run("models", "plan", "--json", name).stdout)
    assert (told["missing"], told["memory"]["weights"]) == (len(CONTENT), len(CONTENT))
    path = Path(run("models", "pull", name).stdout.strip())
    assert path.read_bytes() == CONTENT
    assert {request.path for request in hub.asked} == {"revision", "tree", FILE}
    assert f"It is in {path}.\n" in run("models", "use", name).stdout
    assert run("models", "verify", name, "--hashes").stdout == f"{name}: complete\n"
    run("models", "rm", name)
    assert not path.exists()


def test_what_is_not_there(hub: StandInHub, other_programs: list[Path]) -> None:
    refused = run("models", "plan", "ollama:gemma3", code=1).stderr
    assert "ollama has no model gemma3" in refused
    assert "ollama:tiny:latest" in refused
    refused = run("models", "pull", REPOSITORY, code=1).stderr
    assert f"For example {REPOSITORY}:{FILE}" in refused
    assert (
        "It has tiny.Q4_K_M.gguf, tiny.Q8_0.gguf"
        in run(*("models", "pull", f"{REPOSITORY}:gone.gguf"), code=1).stderr
    )
    assert "ollama:tiny is not from the Hub" in run("models", "rm", "ollama:tiny", code=2).stderr
    assert "No model file" in run("ask", "--model", "./gone.gguf", "hello", code=1).stderr
