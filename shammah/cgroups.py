"""The limits that Linux sets to the memory of this process. Pure apart from reading files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_FILES = ("memory.max", "memory.high", "memory.limit_in_bytes")
"""Of cgroups v2, v2 and v1. Above ``high`` a process is slowed to a crawl, not killed."""


def memory_limits(root: Path, membership: Path) -> list[int]:
    """Every limit that holds for this process, in bytes; none where there are no cgroups.

    A limit holds for everything below it, so those of our own group and of all above it are
    found. In a container the path of our group may not be there; its root has the limit then.

    Args:
        root: where the hierarchies are mounted (``/sys/fs/cgroup``).
        membership: the file that names the groups of this process (``/proc/self/cgroup``).

    Source: cgroups(7), and "Memory" in the kernel's admin-guide/cgroup-v2.
    """
    limits = []
    for hierarchy, group in _groups(root, membership):
        # A group outside the container's view is told as /../name.
        parts = [part for part in group.split("/") if part not in ("", ".", "..")]
        for depth in range(len(parts) + 1):
            directory = hierarchy.joinpath(*parts[:depth])
            limits += [limit for name in _FILES if (limit := _limit(directory / name))]
    return limits


def _groups(root: Path, membership: Path) -> Iterator[tuple[Path, str]]:
    """The hierarchies that may limit memory, each with our group in it."""
    v2 = v1 = "/"
    with contextlib.suppress(OSError):
        for line in membership.read_text("utf-8", "surrogateescape").splitlines():
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if number == "0" and not controllers:
                v2 = path
            elif "memory" in controllers.split(","):
                v1 = path
    yield root, v2
    yield root / "unified", v2  # beside v1
    yield root / "memory", v1


def _limit(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except (OSError, ValueError):
        return None
    # v2 writes "max" for no limit, v1 a number that is larger than any memory.
    return int(text) if text.isdecimal() else None
