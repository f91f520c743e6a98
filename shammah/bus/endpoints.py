"""Where the sockets and locks of a user's workers live: one directory per user, mode 0700.

The lock file, not the socket, says whether a worker runs: a socket file outlives its process, and a
second bind on a live path silently steals it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path

from shammah.bus.record import record
from shammah.errors import ExitCode, ShammahError

ROLES = ("download", "inference", "servers", "cloud", "train", "gateway")

MAX_FRAME_BYTES = 8 * 1024 * 1024
"""About 2 million tokens of text, more than fits any model. The sockets cut at twice this, so that
a frame that is a little too long gets an answer instead of a dropped connection."""

SOCKET_MAX_BYTES = 2 * MAX_FRAME_BYTES
"""ZMQ_MAXMSGSIZE of every socket: libzmq drops the connection of a peer that sends more."""

SUN_PATH_BYTES = 104
"""``sun_path`` on macOS, with its final zero byte; Linux has 108."""

LOCK_S = 10.0
LOCK_PAUSE_S = 0.02


@record
class Endpoints:
    """The paths of one user's workers inside ``runtime``."""

    runtime: Path

    def lock(self, role: str) -> Path:
        return self.runtime / f"{role}.lock"

    def requests(self, role: str) -> str:
        return f"ipc://{self.runtime / f'{role}.sock'}"

    def events(self, role: str) -> str:
        return f"ipc://{self.runtime / f'{role}.events'}"


def open_endpoints(environ: Mapping[str, str], uid: int | None = None) -> Endpoints:
    """The runtime directory of this user, made if missing.

    ``$XDG_RUNTIME_DIR/shammah`` where that variable names a directory, else
    ``/tmp/shammah-UID``.

    Raises:
        ShammahError: ``runtime_directory``, if it belongs to another user, is not a directory of
            its own, cannot be made, or has a name too long for a socket.
    """
    uid = os.getuid() if uid is None else uid
    runtime, xdg = Path(f"/tmp/shammah-{uid}"), environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(xdg) and os.path.isdir(xdg):
        runtime = Path(xdg, "shammah")
    longest = len(os.fsencode(runtime / "inference.events")) + 1
    if longest > SUN_PATH_BYTES:
        raise _refused(runtime, f"its path has {longest} bytes, a socket allows {SUN_PATH_BYTES}")
    try:
        runtime.mkdir(mode=0o700, exist_ok=True)
        found = runtime.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise _refused(runtime, "it is a link or a file")
        if found.st_uid != uid:
            raise _refused(runtime, f"it belongs to user {found.st_uid}, not to you ({uid})")
        if stat.S_IMODE(found.st_mode) != 0o700:
            runtime.chmod(0o700)
    except OSError as error:
        raise _refused(runtime, error.strerror or str(error)) from error
    return Endpoints(runtime)


def _refused(runtime: Path, why: str, hint: str = "") -> ShammahError:
    hint = hint or "Remove it, or set XDG_RUNTIME_DIR to a directory of yours with a short path."
    what = f"Can't use the socket directory {runtime}: {why}."
    return ShammahError("runtime_directory", what, hint, exit_code=ExitCode.USAGE)


def refused(path: Path, error: OSError) -> ShammahError:
    """Explain why the file at ``path`` in the runtime directory cannot be used."""
    why = "it is a link" if error.errno == errno.ELOOP else error.strerror or error
    hint = f"Run `chmod 700 {path.parent}`." if error.errno == errno.EACCES else ""
    if error.errno in (errno.ELOOP, errno.EINVAL):
        hint = f"Remove {path}: Shammah did not make it."
    return _refused(path.parent, f"{path.name}: {why}", hint)


class RoleLock:
    """The exclusive lock that a worker holds for its whole life.

    The kernel drops it when its holder dies, so it cannot go stale. Its pid is inside.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self) -> bool:
        """Take the lock; false if another process has it.

        The shared lock of a probe (`lock_holder`), held for an instant, is waited for.

        Raises:
            ShammahError: ``runtime_directory``.
        """
        try:
            fd = _open_lock(self.path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise refused(self.path, error) from error
        deadline = time.monotonic() + LOCK_S
        while not _try_lock(fd, fcntl.LOCK_EX):
            if not _try_lock(fd, fcntl.LOCK_SH) or time.monotonic() > deadline:
                os.close(fd)
                return False
            fcntl.flock(fd, fcntl.LOCK_UN)
            time.sleep(LOCK_PAUSE_S)
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        self._fd = fd
        return True

    def keep(self) -> bool:
        """Whether others still find this process by the lock.

        If the file was deleted or replaced, take the lock of the new one; false if another process
        was faster, or the directory is gone.
        """
        assert self._fd is not None, "acquire comes first"
        held = self._fd
        try:
            if os.path.samestat(os.stat(self.path), os.fstat(held)):
                return True
        except FileNotFoundError:
            pass
        except OSError:
            return True  # a directory that nobody else can enter either
        try:
            kept = self.acquire()
        except ShammahError:
            return False
        if kept:
            os.close(held)
        return kept

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _open_lock(path: Path, flags: int) -> int:
    """Open the regular file at ``path``; follow no link, wait for no pipe."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "it is not a regular file")


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_holder(path: Path) -> int | None:
    """The pid of the process that holds the lock at ``path``; ``None`` if nobody does, 0 if the
    pid is not written yet.

    The probe takes a shared lock for an instant, which `RoleLock.acquire` waits for.

    Raises:
        ShammahError: ``runtime_directory``.
    """
    try:
        fd = _open_lock(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refused(path, error) from error
    try:
        if _try_lock(fd, fcntl.LOCK_SH):
            return None
        text = os.pread(fd, 32, 0).strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(fd)
