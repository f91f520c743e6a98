"""A GPU that was counted on and cannot be used: the processor, with as many bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shammah.bus.messages import Ready
from shammah.models.catalogue import GIB, LocatedModel, Machine
from shammah.settings.model import InferenceSettings, Settings
from tests.real.models import make_qwen2
from workers.inference.startup import examination
from workers.inference.startup.loading import Loader

MACHINE = Machine(16 * GIB, gpu_memory=24 * GIB)
"""As nvidia-smi tells it."""


class Watcher:
    def located(self, model: str, stages: int) -> None: ...
    def stage(self, name: str) -> None: ...
    def advance(self) -> None: ...


@pytest.fixture
def located(tmp_path: Path) -> LocatedModel:
    return LocatedModel("tiny", make_qwen2(tmp_path / "model"), "tiny")


def load(located: LocatedModel, home: Path) -> Ready:
    asked = InferenceSettings()
    loader = Loader(asked, machine=MACHINE, watcher=Watcher(), home=home)
    return loader.load(located).ready


def pretend(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 24 * GIB))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_driver_that_torch_refuses(located: LocatedModel, tmp_path: Path) -> None:
    ready = load(located, tmp_path)
    assert (ready.engine, ready.device, ready.quantization) == ("native", "cpu", "int8")
    assert "found no usable cuda device" in ready.note
    assert "tiny runs on the CPU with 8-bit weights" in ready.note


def test_a_gpu_that_is_busy(
    located: LocatedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, GIB // 4)
    ready = load(located, tmp_path)
    assert (ready.engine, ready.device, ready.quantization) == ("native", "cpu", "int8")
    assert "in bfloat16 on cuda, but only 0.2 GiB of memory is free." in ready.note


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_fails_while_the_weights_are_read(
    located: LocatedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, 20 * GIB)
    ready = load(located, tmp_path)
    assert (ready.engine, ready.device, ready.quantization) == ("native", "cpu", "int8")
    assert "Couldn't use the GPU (" in ready.note


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_doctor_tells_the_same(
    located: LocatedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "look", lambda environ: MACHINE)
    told = examination.examine(Settings(tmp_path, str(located.directory)), {})["model"]
    assert (told["engine"], told["device"], told["quantization"]) == ("native", "cpu", "int8")
    assert "found no usable cuda device" in told["engine_why"]
