"""Which processors the native engine runs on, and how many cores it takes."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from shammah.errors import ShammahError
from shammah.models.catalogue import GIB, Machine
from shammah.models.cgroups import cpu_limits
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
        ({16: 1 << 1, 26: 0}, {"ASIMD"}),
        ({16: 1 << 1 | 1 << 20, 26: 1 << 13}, {"ASIMD", "ASIMDDP", "I8MM"}),
        ({16: ~(1 << 1), 26: 0}, {"ASIMDDP"}),
    ],
)
def test_arm_is_known_by_the_auxiliary_vector(vectors: dict[int, int], found: set[str]) -> None:
    assert features_of_arm(vectors.__getitem__) == found


def test_a_mac_is_asked_in_its_own_way() -> None:
    told = {
        "machdep.cpu.features": "FPU FMA F16C",
        "machdep.cpu.leaf7_features": "BMI1 AVX2",
        "hw.optional.arm.FEAT_DotProd": "1",
        "hw.optional.arm.FEAT_I8MM": "0",
    }
    assert features_of_mac("x86_64", told.__getitem__) == {"FPU", "FMA", "F16C", "BMI1", "AVX2"}
    assert features_of_mac("aarch64", told.__getitem__) == {"ASIMD", "ASIMDDP"}
    assert features_of_mac("aarch64", lambda name: "") == {"ASIMD"}  # an older system


def test_what_a_mac_does_not_know_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", refuse)
    assert processor.sysctl("hw.unknown") == ""


# --- cores --------------------------------------------------------------------------------


def cores(
    tmp_path: Path, allowed: set[int], siblings: dict[int, str], quotas: tuple[float, ...] = ()
) -> int:
    for cpu, text in siblings.items():
        place = tmp_path / f"cpu{cpu}" / "topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(f"{text}\n")
    return processor.cores_of_linux(tmp_path, allowed, quotas)


TWO_THREADS_EACH = {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}


@pytest.mark.parametrize(
    ("allowed", "found"),
    [(set(range(8)), 4), ({0, 4}, 1), ({1}, 1), ({0, 1, 5}, 2), ({4, 5, 6}, 3)],
)
def test_only_the_cores_of_the_mask_are_counted(
    allowed: set[int], found: int, tmp_path: Path
) -> None:
    assert cores(tmp_path, allowed, TWO_THREADS_EACH) == found


def test_without_a_topology_every_cpu_counts(tmp_path: Path) -> None:
    assert cores(tmp_path, {2, 3, 9}, {}) == 3


@pytest.mark.parametrize(("quotas", "found"), [((2.5,), 2), ((3, 1.9), 1), ((0.5,), 1), ((64,), 4)])
def test_quotas_are_kept_to(quotas: tuple[float, ...], found: int, tmp_path: Path) -> None:
    assert cores(tmp_path, set(range(8)), TWO_THREADS_EACH, quotas) == found


@pytest.mark.parametrize(("told", "found"), [("4", 4), ("", 8), ("0", 8)])
def test_of_a_mac_only_the_fast_cores_count(
    told: str, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 16 if logical else 8)
    assert processor.cores_of_mac({"hw.perflevel0.physicalcpu": told}.__getitem__) == found


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, [1.5]),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "50000 25000"}, [4, 2]),
        (
            "5:cpu,cpuacct:/a\n2:memory:/x\n0::/\n",
            {
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "cpu/a/cpu.cfs_quota_us": "300000",
                "cpu/a/cpu.cfs_period_us": "100000",
            },
            [3],
        ),
        ("0::/gone\n", {"cpu.max": "100000 100000"}, [1]),
        ("", {"cpu.max": "nonsense"}, []),
    ],
)
def test_quotas_are_those_of_every_group_above(
    groups: str, files: dict[str, str], expected: list[float], tmp_path: Path
) -> None:
    (tmp_path / "membership").write_text(groups)
    for name, text in files.items():
        file = tmp_path / "root" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    assert cpu_limits(tmp_path / "root", tmp_path / "membership") == expected
