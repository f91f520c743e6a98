"""Files and directories that appear whole or not at all, and lines that processes append in turn.

A draft lies next to its target. Its process holds a lock on it, which the kernel drops however that
process ends; so a draft that a killed process left is told from one in the making.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

ENDING = ".making"
"""How the name of a draft ends."""
_NAME = 40
"""Characters of its target's name in a draft's name, which must not get too long."""
UNUSED_S = 7 * 24 * 3600.0
"""Without locks (on some network file systems), age alone decides."""
YOUNG_S = 1.0
"""A draft this new may not be locked yet."""


@contextlib.contextmanager
def new_file(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a draft for its owner alone that replaces ``path`` when the block ends, and is removed
    if that fails.

    Args:
        path: the file; a link, as dotfile managers make them, stays.
        sync: wait until the disk has the content; not needed for what can be made again.

    Raises:
        OSError: ``path`` is unchanged.
    """
    target = Path(os.path.realpath(path))
    draft = _draft(target)
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor)
        yield draft
        if sync:
            sync_file(draft)
        os.replace(draft, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write a whole file, as `new_file` does, and create its directory if need be."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with new_file(path, sync=sync) as draft:
        draft.write_bytes(data)


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a directory that becomes ``path`` when the block ends, and is removed if it fails.

    Raises:
        OSError: also if ``path`` exists by then and is not an empty directory.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = _draft(path)
    draft.mkdir(mode=0o700)
    try:
        descriptor = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _lock(descriptor)
            yield draft
            draft.rename(path)
        finally:
            os.close(descriptor)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def remove_abandoned(directory: Path, now: float, target: Path | None = None) -> Iterator[Path]:
    """Remove the drafts in ``directory`` that no process is making; yield each.

    Args:
        directory: where drafts are made.
        now: seconds since 1970.
        target: only the drafts of this file or directory.
    """
    beginning = _beginning(target) if target is not None else ""
    for draft in sorted(directory.glob(f"*{ENDING}")):
        with contextlib.suppress(OSError):  # whole, or removed, by now
            age = now - draft.stat().st_mtime
            wanted = draft.name.startswith(beginning) and age > YOUNG_S
            if wanted and (age > UNUSED_S or _is_free(draft)):
                if draft.is_dir():
                    shutil.rmtree(draft, ignore_errors=True)
                else:
                    draft.unlink()
                yield draft


@contextlib.contextmanager
def open_to_append(path: Path) -> Iterator[int]:
    """Yield the descriptor of a file to read and to append to, which nobody else does meanwhile.

    Args:
        path: a file for its owner alone, created if need be; not a link.

    Raises:
        OSError: it cannot be opened.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    try:
        _refuse_pipe(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def append(descriptor: int, line: bytes) -> None:
    """Append ``line``, including its end, whole or not at all, also after one that a crash tore.

    Raises:
        OSError: the file is unchanged.
    """
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        line = b"\n" + line
    try:
        if os.write(descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def append_line(path: Path, line: bytes) -> None:
    """Append a line, as `open_to_append` and `append` do.

    Raises:
        OSError: the file is unchanged.
    """
    with open_to_append(path) as descriptor:
        append(descriptor, line)


def open_file(path: Path) -> BinaryIO:
    """Open a file to read, but not a named pipe, which would keep its reader waiting forever.

    Raises:
        OSError: it cannot be read, or is a pipe.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _refuse_pipe(descriptor)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def sync_file(path: Path) -> None:
    """Wait until the disk has the content of a file or directory.

    Raises:
        OSError: it may not have it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_pipe(descriptor: int) -> None:
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, not a file")


def _beginning(target: Path) -> str:
    return f".{target.name[:_NAME]}."


def _draft(target: Path) -> Path:
    return target.parent / f"{_beginning(target)}{os.urandom(8).hex()}{ENDING}"


def _lock(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_free(draft: Path) -> bool:
    descriptor = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
