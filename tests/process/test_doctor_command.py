"""``shammah doctor`` as a whole: both sides of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shammah.cli.doctor_report import report
from tests.fakes.command import run
from tests.fakes.sandbox import Sandbox

pytestmark = pytest.mark.timeout(300)

LIMIT_S = 250.0
"""torch and transformers are imported."""


def test_it_explains_what_auto_chooses(sandbox: Sandbox) -> None:
    ended = run("doctor", "--model", "starter", "--json", limit=LIMIT_S)
    assert (ended.code, ended.err) == (0, "")
    document = json.loads(ended.out)
    assert document["ok"]
    model = document["model"]
    assert (model["here"], model["engine"], model["quantization"]) == (True, "native", "int8")
    assert model["parameters"] == 134_543_808
    assert 0 < model["needed"] < model["free"]
    libraries = document["libraries"]
    assert all(libraries[name] for name in ("python", "torch", "transformers", "pyzmq"))
    text = "\n".join(line for line, _ in report(document))
    assert "weights     8-bit weights on cpu" in text


def test_what_is_wrong_is_said_with_what_to_do(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = sandbox.root / "file"
    blocked.write_text("")
    monkeypatch.setenv("SHAMMAH_HOME", str(blocked / "home"))
    ended = run("doctor", "--model", "1.5B", limit=LIMIT_S)
    assert (ended.code, ended.err) == (1, "")
    assert "Traceback" not in ended.out
    assert "\x1b" not in ended.out
    assert "Cannot write to" in ended.out
    assert "is not on this disk, and HF_HUB_OFFLINE forbids" in ended.out
    assert "Unset HF_HUB_OFFLINE" in ended.out
    assert Path(sandbox.home).exists()


def test_a_damaged_file_of_ones_own_is_not_to_be_downloaded(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"GGUF")
    document = json.loads(run("doctor", "--model", str(path), "--json", limit=LIMIT_S).out)
    (problem,) = document["problems"]
    assert problem["message"].startswith("mine.gguf ")
    assert problem["hint"].startswith("Put a whole file in its place")
