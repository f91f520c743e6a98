"""How many cores this process may use."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Set
from pathlib import Path

from shammah.models.cgroups import cpu_limits

CPUS = Path("/sys/devices/system/cpu")
_FAST_CORES = "hw.perflevel0.physicalcpu"
_FAST = 2 / 3
"""Of the best core's capacity: the big and middle ones of ARM's have 0.7 to 1, the small ones less
than 0.6."""

Ask = Callable[[str], str]
"""What the system says of a name; empty: nothing."""


def usable_cores() -> int:
    """Cores this process may use, at least 1.

    Those of its affinity mask, a second thread of the same core not counted since it only gets
    in the way; and no more than the quotas of its cgroups allow, since threads that wait for
    one that is throttled use the quota up. Of those that differ (ARM's and Apple's) only the fast
    ones: the others' share of a phase would be waited for.
    """
    if sys.platform == "darwin":
        return cores_of_mac(sysctl)
    return cores_of_linux(CPUS, os.sched_getaffinity(0), cpu_limits())


def cores_of_mac(ask: Ask) -> int:
    """The fast ones; all of them where they are all the same."""
    import psutil

    fast = ask(_FAST_CORES)
    return int(fast) if fast.isdecimal() and int(fast) else psutil.cpu_count(logical=False) or 1


def cores_of_linux(cpus: Path, allowed: Set[int], limits: Iterable[float]) -> int:
    """
    Args:
        cpus: where the system describes each.
        allowed: the numbers of those that this process may use.
        limits: of its cgroups, in CPUs.
    """
    capacities = {_siblings(cpus / f"cpu{cpu}"): _capacity(cpus / f"cpu{cpu}") for cpu in allowed}
    least = max(capacities.values(), default=0) * _FAST
    fast = [capacity for capacity in capacities.values() if capacity >= least]
    return max(1, min([len(fast), *map(int, limits)]))


def _siblings(cpu: Path) -> str:
    """What names the core that a CPU is a thread of."""
    try:
        return (cpu / "topology/thread_siblings_list").read_text().strip()
    except (OSError, ValueError):
        return cpu.name


def _capacity(cpu: Path) -> int:
    """How much it computes beside the best, 1024; of processors with cores of one kind, 0."""
    try:
        return int((cpu / "cpu_capacity").read_text())
    except (OSError, ValueError):
        return 0


def sysctl(name: str) -> str:
    """What macOS says of it; empty: it does not know it."""
    command = ["/usr/sbin/sysctl", "-n", name]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""
    return told.stdout.strip()
