"""Which processors the native engine runs on."""

from __future__ import annotations

import platform
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shammah.errors import ShammahError
from shammah.models.catalogue import GIB, Machine
from shammah.settings.model import InferenceSettings
from workers.inference.engines.native import processor
from workers.inference.engines.native.architecture import supports
from workers.inference.engines.native.processor import (
    features_of_arm,
    features_of_mac,
    features_of_x86,
)
from workers.inference.engines.native.runner import NativeRunner
from workers.inference.engines.table import ENGINES
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.startup.offers import choose_engine, prepare_engine

MODEL = Checkpoint(Path("/m"), "Qwen2ForCausalLM", "qwen2", 8192, (), 2 * GIB, GIB, "")
ALL = frozenset({"SSE2", "FMA", "F16C", "AVX2"})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes this a processor that can do this, of this kind."""

    def make(found: frozenset[str], kind: str = "x86_64") -> None:
        monkeypatch.setattr(processor, "features", lambda: found)
        monkeypatch.setattr(platform, "machine", lambda: kind)
        monkeypatch.setattr(sys, "platform", "linux")

    return make


@pytest.mark.parametrize(
    ("found", "kind"),
    [(ALL, "x86_64"), (ALL, "AMD64"), ({"ASIMD"}, "aarch64"), ({"ASIMD"}, "arm64")],
)
def test_a_processor_with_all_that_is_needed_is_no_obstacle(
    found: frozenset[str], kind: str, machine: Any
) -> None:
    machine(found, kind)
    assert processor.obstacle() == ""


@pytest.mark.parametrize(
    ("found", "lacking"),
    [
        (ALL - {"AVX2"}, "lacks AVX2"),
        (ALL - {"FMA", "F16C"}, "lacks FMA and F16C"),
        (frozenset(), "lacks AVX2, FMA and F16C"),
    ],
)
def test_what_a_processor_lacks_is_said_and_transformers_computes(
    found: frozenset[str], lacking: str, machine: Any
) -> None:
    machine(found)
    assert processor.obstacle().endswith(lacking)
    assert supports(MODEL) == processor.obstacle()
    chosen, why = choose_engine(InferenceSettings(), MODEL, "cpu", ENGINES)
    assert chosen.name == "transformers"
    assert lacking in why
    with pytest.raises(ShammahError, match="AVX2, FMA and F16C; this one lacks"):
        choose_engine(InferenceSettings(engine="native"), MODEL, "cpu", ENGINES)


def test_another_kind_of_processor_is_not_claimed(machine: Any) -> None:
    machine(ALL, "riscv64")
    assert "riscv64" in supports(MODEL)


def test_without_numba_a_processor_for_which_nothing_is_carried_is_none(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(ALL)  # but not MOVBE
    monkeypatch.setattr(processor, "find_spec", lambda name: None)
    assert "no machine code for this processor" in supports(MODEL)


def test_nothing_is_compiled_for_a_processor_that_cannot_run_it(
    machine: Any, tmp_path: Path
) -> None:
    machine(frozenset())
    runner = NativeRunner(tmp_path, tmp_path / "kernels", 1)
    with pytest.raises(ShammahError, match="cannot run here"):
        runner.prepare()
    runner.close()
    assert not (tmp_path / "kernels").exists()
    prepared: list[str] = []
    engines = {
        name: replace(engine, make=partial(Prepares, prepared, name))
        for name, engine in ENGINES.items()
    }
    prepare_engine(InferenceSettings(), Machine(16 * GIB), engines)
    assert prepared == ["transformers"]


class Prepares:
    def __init__(self, prepared: list[str], name: str) -> None:
        self.prepare = lambda: prepared.append(name)


# --- what it can do -----------------------------------------------------------------------


def test_x86_is_known_by_its_flags() -> None:
    text = "processor\t: 0\nflags\t\t: fpu fma f16c avx2\nbugs\t\t: none\n"
    assert features_of_x86(text) == {"FPU", "FMA", "F16C", "AVX2"}
    assert features_of_x86("") == frozenset()


@pytest.mark.parametrize(
    ("vectors", "found"),
    [
        ({16: 1 << 1}, {"ASIMD"}),
        ({16: 1 << 1 | 1 << 20}, {"ASIMD", "ASIMDDP"}),
        ({16: ~(1 << 1)}, {"ASIMDDP"}),
    ],
)
def test_arm_is_known_by_the_auxiliary_vector(vectors: dict[int, int], found: set[str]) -> None:
    assert features_of_arm(vectors.__getitem__) == found


def test_a_mac_is_asked_in_its_own_way() -> None:
    told = {
        "machdep.cpu.features": "FPU FMA F16C",
        "machdep.cpu.leaf7_features": "BMI1 AVX2",
    }
    assert features_of_mac("x86_64", told.__getitem__) == {"FPU", "FMA", "F16C", "BMI1", "AVX2"}
    assert features_of_mac("aarch64", told.__getitem__) == {"ASIMD", "ASIMDDP"}
