"""What the processor can do, and how much of it this process may use. Imports no numba.

The kernels are written for x86-64 with AVX2, FMA and F16C (Intel since 2013, AMD since 2015).
LLVM would make something of them for others, but calls C libraries for half precision there that
may not be linked, and it has not been tested: so it is not claimed.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil

from shammah.models.cgroups import cpu_limits

_NEEDED = ("AVX2", "FMA", "F16C")
_X86 = ("x86_64", "AMD64")
CPU_INFO = Path("/proc/cpuinfo")
CPUS = Path("/sys/devices/system/cpu")
_SYSCTL = ["/usr/sbin/sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features"]


def obstacle() -> str:
    """Why the kernels cannot run here, as the end of "it ..."; empty: they can."""
    machine = platform.machine()
    if machine not in _X86:
        return f"has not been tested on this kind of processor ({machine or 'unknown'})"
    found = features()
    lacking = [name for name in _NEEDED if name not in found]
    if lacking:
        return f"needs a processor with {_listed(_NEEDED)}; this one lacks {_listed(lacking)}"
    return ""


def features(cpu_info: Path = CPU_INFO) -> frozenset[str]:
    """The instruction sets of this processor, in capitals; none if the system does not say."""
    try:
        if sys.platform == "darwin":
            found = subprocess.run(_SYSCTL, capture_output=True, text=True, check=True, timeout=5)
            return frozenset(found.stdout.upper().split())
        for line in cpu_info.read_text().splitlines():
            name, _, values = line.partition(":")
            if name.strip() == "flags":
                return frozenset(values.upper().split())
    except (OSError, ValueError, subprocess.SubprocessError):
        pass
    return frozenset()


def usable_cores(cpus: Path = CPUS) -> int:
    """Cores this process may use, at least 1.

    Those of its affinity mask, a second thread of the same core not counted since it only gets
    in the way; and no more than the quotas of its cgroups allow, since threads that wait for
    one that is throttled use the quota up.
    """
    quotas = [int(limit) for limit in cpu_limits()]
    return max(1, min([_cores(cpus), *quotas]))


def _cores(cpus: Path) -> int:
    every = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    if not hasattr(os, "sched_getaffinity"):
        return every
    allowed = os.sched_getaffinity(0)
    return min(len({_siblings(cpus / f"cpu{cpu}") for cpu in allowed}), len(allowed))


def _siblings(cpu: Path) -> str:
    """What names the core that a CPU is a thread of."""
    try:
        return (cpu / "topology/thread_siblings_list").read_text().strip()
    except (OSError, ValueError):
        return cpu.name


def _listed(names: tuple[str, ...] | list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
