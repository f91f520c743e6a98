"""Full and unwritable disks, for what can do without them."""

from __future__ import annotations

import os
from pathlib import Path

_LEAST_BYTES = 1024 * 1024
"""A disk with less than this free is full."""


def open_log(path: Path) -> int:
    """Return a descriptor that appends to ``path``, or to nothing if that is not possible: a worker
    can do without its log."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A pipe without a reader fails at once, instead of waiting for one.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(path, flags, 0o600)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def nearest_existing(path: Path) -> Path:
    """Return ``path``, or the nearest directory above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def describe_remedy(path: Path) -> str:
    """Return a sentence on what to do if ``path``, or what should be in it, cannot be written."""
    place = nearest_existing(path)
    try:
        disk = os.statvfs(place)
    except OSError:
        disk = None
    if disk is not None and disk.f_flag & os.ST_RDONLY:
        return "That disk is read-only. Set SHAMMAH_HOME to a directory on another one."
    if disk is not None and disk.f_bavail * disk.f_frsize < _LEAST_BYTES:
        return (
            "That disk is full. Free some space, or set SHAMMAH_HOME to a directory on another one."
        )
    return f"Check the permissions of {place}, or set SHAMMAH_HOME to another directory."
