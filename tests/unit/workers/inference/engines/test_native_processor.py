"""Which processors the native engine runs on, and how many cores it takes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shammah.errors import ShammahError
from shammah.models.catalogue import GIB, Machine
from shammah.models.cgroups import cpu_limits
from shammah.settings.model import InferenceSettings
from workers.inference.engines.native import processor
from workers.inference.engines.native.architecture import supports
from workers.inference.engines.native.processor import features
from workers.inference.engines.native.runner import NativeRunner
from workers.inference.engines.table import ENGINES
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.startup.offers import choose_engine, prepare_engine

MODEL = Checkpoint(Path("/m"), "Qwen2ForCausalLM", "qwen2", 8192, (), 2 * GIB, GIB, "")
FLAGS = "flags\t\t: fpu sse2 fma f16c avx2\nbugs\t\t: none\n"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Makes this a processor with these flags, of this kind."""

    def make(flags: str, kind: str = "x86_64") -> None:
        path = tmp_path / "cpuinfo"
        path.write_text(f"processor\t: 0\n{flags}")
        monkeypatch.setattr(processor, "features", partial(features, path))
        monkeypatch.setattr(platform, "machine", lambda: kind)
        monkeypatch.setattr(sys, "platform", "linux")

    return make


def test_a_processor_with_all_that_is_needed_is_no_obstacle(machine: Any) -> None:
    machine(FLAGS)
    assert processor.obstacle() == ""


@pytest.mark.parametrize(
    ("flags", "lacking"),
    [
        (FLAGS.replace(" avx2", ""), "lacks AVX2"),
        (FLAGS.replace(" f16c", "").replace(" fma", " fma4"), "lacks FMA and F16C"),
        ("", "lacks AVX2, FMA and F16C"),
    ],
)
def test_what_a_processor_lacks_is_said_and_transformers_computes(
    flags: str, lacking: str, machine: Any
) -> None:
    machine(flags)
    assert processor.obstacle().endswith(lacking)
    assert supports(MODEL) == processor.obstacle()
    chosen, why = choose_engine(InferenceSettings(), MODEL, "cpu", ENGINES)
    assert chosen.name == "transformers"
    assert lacking in why
    with pytest.raises(ShammahError, match="AVX2, FMA and F16C; this one lacks"):
        choose_engine(InferenceSettings(engine="native"), MODEL, "cpu", ENGINES)


def test_another_kind_of_processor_is_not_claimed(machine: Any) -> None:
    machine(FLAGS, "arm64")
    assert "arm64" in supports(MODEL)


def test_nothing_is_compiled_for_a_processor_that_cannot_run_it(
    machine: Any, tmp_path: Path
) -> None:
    machine("")
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


def test_a_mac_is_asked_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, "FPU FMA F16C\nBMI1 AVX2\n", "")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", told)
    assert {"FMA", "F16C", "AVX2"} <= processor.features()


# --- cores --------------------------------------------------------------------------------


def cores(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    allowed: set[int],
    siblings: dict[int, str],
    quotas: tuple[float, ...] = (),
) -> int:
    for cpu, text in siblings.items():
        place = tmp_path / f"cpu{cpu}" / "topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(f"{text}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed, raising=False)
    monkeypatch.setattr(processor, "cpu_limits", lambda: list(quotas))
    return processor.usable_cores(tmp_path)


TWO_THREADS_EACH = {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}


@pytest.mark.parametrize(
    ("allowed", "found"),
    [(set(range(8)), 4), ({0, 4}, 1), ({1}, 1), ({0, 1, 5}, 2), ({4, 5, 6}, 3)],
)
def test_only_the_cores_of_the_mask_are_counted(
    allowed: set[int], found: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cores(monkeypatch, tmp_path, allowed, TWO_THREADS_EACH) == found


def test_without_a_topology_every_cpu_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cores(monkeypatch, tmp_path, {2, 3, 9}, {}) == 3


@pytest.mark.parametrize(("quotas", "found"), [((2.5,), 2), ((3, 1.9), 1), ((0.5,), 1), ((64,), 4)])
def test_quotas_are_kept_to(
    quotas: tuple[float, ...], found: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cores(monkeypatch, tmp_path, set(range(8)), TWO_THREADS_EACH, quotas) == found


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
