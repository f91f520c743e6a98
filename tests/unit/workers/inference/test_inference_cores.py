"""How many cores an engine takes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from shammah.models.cgroups import cpu_limits
from workers.inference.cores import cores_of_linux, cores_of_mac, sysctl


def cores(
    tmp_path: Path, allowed: set[int], siblings: dict[int, str], quotas: tuple[float, ...] = ()
) -> int:
    for cpu, text in siblings.items():
        place = tmp_path / f"cpu{cpu}" / "topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(f"{text}\n")
    return cores_of_linux(tmp_path, allowed, quotas)


TWO_THREADS_EACH = {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}


@pytest.mark.parametrize(
    ("allowed", "found"),
    [(set(range(8)), 4), ({0, 4}, 1), ({1}, 1), ({0, 1, 5}, 2), ({4, 5, 6}, 3)],
)
def test_only_the_cores_of_the_mask_are_counted(
    allowed: set[int], found: int, tmp_path: Path
) -> None:
    assert cores(tmp_path, allowed, TWO_THREADS_EACH) == found


def test_of_cores_that_differ_only_the_fast_ones_count(tmp_path: Path) -> None:
    """As of a board with an ARM processor: one core is best, three are near it, four are small."""
    for cpu, capacity in enumerate((1024, 870, 870, 870, 530, 530, 530, 530)):
        (tmp_path / f"cpu{cpu}").mkdir()
        (tmp_path / f"cpu{cpu}" / "cpu_capacity").write_text(f"{capacity}\n")
    assert cores(tmp_path, set(range(8)), {}) == 4
    assert cores(tmp_path, {4, 5}, {}) == 2


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
    assert cores_of_mac({"hw.perflevel0.physicalcpu": told}.__getitem__) == found


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


def test_what_a_mac_does_not_know_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", refuse)
    assert sysctl("hw.unknown") == ""
