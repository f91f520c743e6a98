"""What Linux grants this process of the memory and the processors, and whom it has killed for
want of memory. Pure apart from reading files.

Source: cgroups(7), "Memory" and "CPU" in the kernel's admin-guide/cgroup-v2, cgroup-v1/memory,
scheduler/sched-bwc.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
"""Where the hierarchies are mounted."""

MEMBERSHIP = Path("/proc/self/cgroup")
"""The file that names the groups of this process."""

_LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")
"""Of cgroups v2, v2 and v1. Above ``high`` a process is slowed to a crawl, not killed."""

_USAGES = ("memory.current", "memory.usage_in_bytes")
_CACHE = ("inactive_file", "active_file")
"""Of ``memory.stat``: what the kernel gives up before it kills. v1 writes ``total_`` before the
sums that include the groups below, which is what v2 writes without it."""

_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def memory_limits(root: Path = ROOT, membership: Path = MEMBERSHIP) -> list[int]:
    """Every limit that holds for this process, in bytes; none where there are no cgroups.

    A limit holds for everything below it, so those of our own group and of all above it are
    found. In a container the path of our group may not be there; its root has the limit then.
    """
    return [limit for directory in _groups(root, membership) for limit in _limits(directory)]


def memory_left(root: Path = ROOT, membership: Path = MEMBERSHIP) -> list[int]:
    """What each of those limits still allows, in bytes: the limit, less what is used.

    Cached files count as free, as they do in the ``MemAvailable`` of a whole machine.
    """
    left = []
    for directory in _groups(root, membership):
        limits = _limits(directory)
        used = next((used for name in _USAGES if (used := _number(directory / name))), None)
        if limits and used is not None:
            left.append(max(0, min(limits) - used + min(used, _cached(directory))))
    return left


def cpu_limits(root: Path = ROOT, membership: Path = MEMBERSHIP) -> list[float]:
    """Every quota of processor time that holds for this process, in processors."""
    quotas = []
    for directory in _groups(root, membership, "cpu"):
        times = _words(directory / "cpu.max")  # "max 100000": no limit
        if not times:  # v1, where -1 is no limit
            for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"):
                times += _words(directory / name)
        if len(times) == 2 and all(time.isdecimal() and int(time) for time in times):
            quotas.append(int(times[0]) / int(times[1]))
    return quotas


def kill_counter(root: Path = ROOT, membership: Path = MEMBERSHIP) -> Path | None:
    """The file in which the kernel counts its kills in our own group, if it does."""
    names = ("memory.events", "memory.oom_control")
    every = [directory / name for directory in _groups(root, membership) for name in names]
    return next((path for path in reversed(every) if count_kills(path) is not None), None)


def count_kills(counter: Path) -> int | None:
    """How many processes the kernel has killed because memory ran out; ``None``: it does not tell.

    Args:
        counter: see `kill_counter`; or ``/proc/vmstat``, for the whole machine.
    """
    try:
        found = _KILLS.search(counter.read_text())
    except (OSError, ValueError):
        return None
    return int(found[1]) if found else None


def _groups(root: Path, membership: Path, controller: str = "memory") -> Iterator[Path]:
    """The directories of all groups that may limit us, each after those above it."""
    v2 = v1 = "/"
    with contextlib.suppress(OSError):
        for line in membership.read_text("utf-8", "surrogateescape").splitlines():
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if number == "0" and not controllers:
                v2 = path
            elif controller in controllers.split(","):
                v1 = path
    # The second: mounted next to v1.
    for hierarchy, group in ((root, v2), (root / "unified", v2), (root / controller, v1)):
        # A group outside the container's view is told as /../name.
        parts = [part for part in group.split("/") if part not in ("", ".", "..")]
        yield from (hierarchy.joinpath(*parts[:depth]) for depth in range(len(parts) + 1))


def _limits(directory: Path) -> list[int]:
    return [limit for name in _LIMITS if (limit := _number(directory / name))]


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except (OSError, ValueError):
        return []


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except (OSError, ValueError):
        return None
    # v2 writes "max" for no limit, v1 a number that is larger than any memory.
    return int(text) if text.isdecimal() else None


def _cached(directory: Path) -> int:
    try:
        lines = (directory / "memory.stat").read_text().splitlines()
        held = {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}
    except (OSError, ValueError):
        return 0
    return sum(held.get(f"total_{name}", held.get(name, 0)) for name in _CACHE)
