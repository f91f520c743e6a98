"""What the processor can do. Imports no numba.

The kernels are written for x86-64 with AVX2, FMA and F16C (Intel since 2013, AMD since 2015), and
run on every ARM processor of 64 bits: under Linux that was tried on an emulated one, and under
macOS not at all.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from workers.inference.cores import Ask, sysctl
from workers.inference.engines.native.targets import fitting_target

_NEEDED = {"x86_64": ("AVX2", "FMA", "F16C"), "aarch64": ("ASIMD",)}
_KINDS = {"AMD64": "x86_64", "arm64": "aarch64"}
CPU_INFO = Path("/proc/cpuinfo")
_X86_SYSCTLS = ("machdep.cpu.features", "machdep.cpu.leaf7_features")

_AT_HWCAP = 16
_HWCAPS = {1: "ASIMD", 20: "ASIMDDP"}
"""Bits of that word of the kernel's auxiliary vector (Linux, asm/hwcap.h)."""


def kind() -> str:
    """What kind of processor this is, by one name whatever the system: ``x86_64``, ``aarch64``
    or another."""
    machine = platform.machine()
    return _KINDS.get(machine, machine)


def obstacle() -> str:
    """Why the kernels cannot run here, as the end of "it ..."; empty: they can."""
    needed = _NEEDED.get(kind())
    if needed is None:
        return f"has not been tested on this kind of processor ({kind() or 'unknown'})"
    found = features()
    lacking = [name for name in needed if name not in found]
    if lacking:
        return f"needs a processor with {_listed(needed)}; this one lacks {_listed(lacking)}"
    if fitting_target(sys.platform, kind(), found) is None and find_spec("numba") is None:
        return "has no machine code for this processor, and numba, which makes it, is not installed"
    return ""


def features() -> frozenset[str]:
    """The instruction sets of this processor, in capitals; none if the system does not say."""
    if sys.platform == "darwin":
        return features_of_mac(kind(), sysctl)
    if kind() == "aarch64":
        library = ctypes.CDLL(None)
        library.getauxval.restype = ctypes.c_ulong
        library.getauxval.argtypes = [ctypes.c_ulong]
        return features_of_arm(library.getauxval)
    try:
        return features_of_x86(CPU_INFO.read_text())
    except (OSError, ValueError):
        return frozenset()


def features_of_x86(cpu_info: str) -> frozenset[str]:
    """By the text of Linux's /proc/cpuinfo."""
    for line in cpu_info.splitlines():
        name, _, values = line.partition(":")
        if name.strip() == "flags":
            return frozenset(values.upper().split())
    return frozenset()


def features_of_arm(getauxval: Callable[[int], int]) -> frozenset[str]:
    """By what Linux tells each process. (/proc/cpuinfo is the host's where one is emulated.)"""
    found = getauxval(_AT_HWCAP)
    return frozenset(name for bit, name in _HWCAPS.items() if found >> bit & 1)


def features_of_mac(kind: str, ask: Ask) -> frozenset[str]:
    """By what macOS says. Each is asked for alone: one that it does not know is an error."""
    if kind == "aarch64":  # all of which have vectors and dot products
        return frozenset(_HWCAPS.values())
    return frozenset(word for key in _X86_SYSCTLS for word in ask(key).upper().split())


def _listed(names: tuple[str, ...] | list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
