"""A home that takes nothing: the model answers all the same."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.fakes.command import run
from tests.fakes.sandbox import Sandbox
from tests.fakes.spans import prefill
from tests.real.models import KEPT_KERNELS, make_qwen2
from workers.inference.engine import EngineFacts, LoadSettings
from workers.inference.engines.native.runner import NativeRunner
from workers.inference.packages.checkpoint import inspect_checkpoint
from workers.inference.runner import Logits

TOKENS = [1, 40, 50, 60, 70]


class Observer:
    def stage(self, name: str) -> None: ...
    def advance(self) -> None: ...


def block(home: Path, *names: str) -> None:
    """A file stands where a directory must be, and a directory where a file must be."""
    for name in names:
        place = home / name
        place.mkdir() if "." in name else place.write_text("")


def compute(
    runner: NativeRunner, model: Path, home: Path, quantization: str
) -> tuple[EngineFacts, Logits]:
    settings = LoadSettings("cpu", quantization=quantization, home=home)
    facts = runner.load(inspect_checkpoint(model), settings, Observer())
    runner.reserve(1, 64)
    logits = prefill(runner, 0, 0, TOKENS)
    runner.close()
    return facts, logits


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_weights_are_packed_in_memory_as_they_are_on_a_disk(
    quantization: str, tmp_path: Path
) -> None:
    model = make_qwen2(tmp_path / "model", tied=False)
    for home in ("home", "blocked"):
        (tmp_path / home).mkdir()
    block(tmp_path / "blocked", "quantized")
    runners = [NativeRunner(kernels=KEPT_KERNELS, threads=2) for _ in range(2)]
    known, expected = compute(runners[0], model, tmp_path / "home", quantization)
    told, found = compute(runners[1], model, tmp_path / "blocked", quantization)
    assert np.array_equal(found, expected)
    assert not known.note
    assert f"Couldn't write the packed weights to {tmp_path / 'blocked' / 'quantized'}" in told.note
    assert "packed again at each start" in told.note


def test_ask_answers_and_says_each_thing_once(sandbox: Sandbox) -> None:
    block(sandbox.shammah_home, "logs", "quantized", "history.db", "router.db")
    ran = run("ask", "--model", "starter", "What is the capital of France? In one word.")
    assert ran.code == 0, ran.err
    assert "Paris" in ran.out
    for name in ("history.db", "router.db"):
        assert ran.err.count(f"{sandbox.shammah_home / name} cannot be used") == 1
    assert "again" not in ran.err
    status = run("status", "--once")
    assert "They stay in memory and are packed again at each start." in status.said
    assert run("stop").code == 0
    assert os.path.isfile(sandbox.shammah_home / "logs")
