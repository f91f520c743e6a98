"""Where the sockets lie, and who holds a role."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shammah.bus.endpoints import (
    ROLES,
    SUN_PATH_BYTES,
    Endpoints,
    RoleLock,
    lock_holder,
    open_endpoints,
)
from shammah.errors import ExitCode, ShammahError
from tests.fakes.sandbox import LIMIT_S, Sandbox, until

NOBODY = 65534

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")


def refused(environ: dict[str, str], uid: int | None = None) -> str:
    """What is said of the runtime directory that ``environ`` names."""
    with pytest.raises(ShammahError) as refusal:
        open_endpoints(environ, uid)
    assert refusal.value.code == "runtime_directory"
    assert refusal.value.exit_code == ExitCode.USAGE
    assert refusal.value.hint
    return refusal.value.message


@pytest.fixture
def free_uid() -> Iterator[int]:
    """A uid whose directory in /tmp nobody has."""
    uid = next(uid for uid in range(3_000_000, 4_000_000) if not fallback(uid).exists())
    yield uid
    if fallback(uid).is_dir():
        fallback(uid).rmdir()


def fallback(uid: int) -> Path:
    return Path(f"/tmp/shammah-{uid}")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


class TestTheRuntimeDirectory:
    def test_is_made_private_below_xdg_runtime_dir(self, sandbox: Sandbox) -> None:
        old = os.umask(0)
        try:
            endpoints = open_endpoints({"XDG_RUNTIME_DIR": str(sandbox.xdg)})
        finally:
            os.umask(old)
        assert endpoints.runtime == sandbox.xdg / "shammah"
        assert mode(endpoints.runtime) == 0o700

    def test_is_used_again(self, sandbox: Sandbox) -> None:
        environ = {"XDG_RUNTIME_DIR": str(sandbox.xdg)}
        assert open_endpoints(environ) == open_endpoints(environ)

    @AS_ROOT
    @pytest.mark.parametrize("value", [None, "", "/nonexistent/runtime"])
    def test_is_in_tmp_where_xdg_names_none(self, free_uid: int, value: str | None) -> None:
        fallback(free_uid).mkdir()
        os.chown(fallback(free_uid), free_uid, -1)
        environ = {} if value is None else {"XDG_RUNTIME_DIR": value}
        endpoints = open_endpoints(environ, free_uid)
        assert endpoints.runtime == fallback(free_uid)
        assert mode(endpoints.runtime) == 0o700  # it was 0755

    def test_does_not_depend_on_the_current_directory(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A worker has another one: a relative name would be two directories."""
        monkeypatch.chdir(sandbox.root)
        assert open_endpoints({"XDG_RUNTIME_DIR": "run"}).runtime.is_absolute()

    @pytest.mark.parametrize("loose", [0o755, 0o777, 0o701, 0o1777])
    def test_is_tightened(self, sandbox: Sandbox, loose: int) -> None:
        (sandbox.xdg / "shammah").mkdir()
        (sandbox.xdg / "shammah").chmod(loose)
        open_endpoints({"XDG_RUNTIME_DIR": str(sandbox.xdg)})
        assert mode(sandbox.xdg / "shammah") == 0o700

    def test_may_not_be_a_link(self, sandbox: Sandbox) -> None:
        (sandbox.xdg / "shammah").symlink_to(sandbox.home)
        assert "a link" in refused({"XDG_RUNTIME_DIR": str(sandbox.xdg)})
        assert mode(sandbox.home) == 0o700

    def test_may_not_be_a_dangling_link(self, sandbox: Sandbox) -> None:
        (sandbox.xdg / "shammah").symlink_to("/nonexistent")
        refused({"XDG_RUNTIME_DIR": str(sandbox.xdg)})

    def test_may_not_be_a_file(self, sandbox: Sandbox) -> None:
        (sandbox.xdg / "shammah").write_text("")
        assert str(sandbox.xdg / "shammah") in refused({"XDG_RUNTIME_DIR": str(sandbox.xdg)})

    @AS_ROOT
    def test_may_not_belong_to_another(self, sandbox: Sandbox) -> None:
        theirs = sandbox.xdg / "shammah"
        theirs.mkdir(mode=0o755)
        os.chown(theirs, NOBODY, -1)
        said = refused({"XDG_RUNTIME_DIR": str(sandbox.xdg)})
        assert f"belongs to user {NOBODY}" in said
        assert mode(theirs) == 0o755  # untouched

    def test_may_not_be_another_users_in_tmp(self, free_uid: int) -> None:
        """Whoever makes /tmp/shammah-UID first must not get that user's questions."""
        fallback(free_uid).mkdir()  # by us, who are somebody else
        assert f"not to you ({free_uid})" in refused({}, free_uid)

    def test_may_not_be_missing_and_unmakeable(self, sandbox: Sandbox) -> None:
        readonly = Path("/proc/self/task")
        assert str(readonly) in refused({"XDG_RUNTIME_DIR": str(readonly)})

    def test_may_be_just_short_enough_for_every_socket(self, sandbox: Sandbox) -> None:
        for surplus in (0, 1):
            named = _of_length(sandbox.root, surplus)
            if surplus:
                assert "105 bytes, a socket allows 104" in refused({"XDG_RUNTIME_DIR": str(named)})
            else:
                endpoints = open_endpoints({"XDG_RUNTIME_DIR": str(named)})
                longest = max(
                    len(name.removeprefix("ipc://").encode()) + 1
                    for role in ROLES
                    for name in (endpoints.requests(role), endpoints.events(role))
                )
                assert longest == SUN_PATH_BYTES

    def test_length_is_counted_in_bytes(self, sandbox: Sandbox) -> None:
        named = sandbox.root / ("é" * 40)
        named.mkdir()
        assert "a socket allows" in refused({"XDG_RUNTIME_DIR": str(named)})


def _of_length(root: Path, surplus: int) -> Path:
    fixed = len(f"{root}//shammah/inference.events".encode()) + 1
    named = root / ("d" * (SUN_PATH_BYTES - fixed + surplus))
    named.mkdir()
    return named


def test_a_path_for_each_role_and_purpose() -> None:
    endpoints = Endpoints(Path("/run/x"))
    paths = {
        path
        for role in ROLES
        for path in (
            str(endpoints.lock(role)),
            endpoints.requests(role),
            endpoints.events(role),
        )
    }
    assert len(paths) == 3 * len(ROLES)
    assert endpoints.requests("cloud") == "ipc:///run/x/cloud.sock"


HOLDER = """
import pathlib, sys
from shammah.bus.endpoints import RoleLock
print(RoleLock(pathlib.Path(sys.argv[1])).acquire(), flush=True)
sys.stdin.read()
"""


class TestTheLock:
    @pytest.fixture
    def path(self, sandbox: Sandbox) -> Path:
        return sandbox.endpoints.lock("inference")

    def test_nobody_holds_a_lock_that_is_not_there(self, path: Path) -> None:
        assert lock_holder(path) is None
        assert not path.exists()

    def test_that_cannot_be_reached_is_an_error_in_words(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The directory's mode was changed, or it is a file now, while we ran."""
        path.parent.rmdir()
        path.parent.touch()
        for look in (lambda: lock_holder(path), RoleLock(path).acquire):
            with pytest.raises(ShammahError, match=r"inference\.lock: Not a directory") as failed:
                look()
            assert failed.value.code == "runtime_directory"

        def denied(*_arguments: object) -> int:
            raise PermissionError(errno.EACCES, "Permission denied")

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", denied)  # what clears up after the test opens, too
            with pytest.raises(ShammahError) as failed:
                lock_holder(path)
        assert "Permission denied" in failed.value.message
        assert failed.value.hint == f"Run `chmod 700 {path.parent}`."

    @pytest.mark.parametrize("kind", ["pipe", "link", "directory"])
    def test_is_refused_where_it_is_no_regular_file(self, path: Path, kind: str) -> None:
        """A pipe would keep whoever opens it until somebody opens its other end."""
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to(path.parent / "elsewhere")
        else:
            path.mkdir()
        for look in (lambda: lock_holder(path), RoleLock(path).acquire):
            with pytest.raises(ShammahError, match=r"inference\.lock: ") as failed:
                look()
            assert failed.value.code == "runtime_directory"
            assert f"{path}" in failed.value.hint or kind == "directory"
        assert not (path.parent / "elsewhere").exists()

    def test_names_its_holder(self, path: Path) -> None:
        lock = RoleLock(path)
        assert lock.acquire()
        assert lock_holder(path) == os.getpid()
        assert mode(path) == 0o600
        lock.release()
        assert lock_holder(path) is None

    def test_is_held_once(self, path: Path) -> None:
        first, second = RoleLock(path), RoleLock(path)
        assert first.acquire()
        assert not second.acquire()
        assert lock_holder(path) == os.getpid()
        second.release()  # holds nothing, so frees nothing
        assert lock_holder(path) == os.getpid()
        first.release()
        assert second.acquire()
        second.release()

    def test_may_be_freed_twice(self, path: Path) -> None:
        lock = RoleLock(path)
        lock.acquire()
        lock.release()
        lock.release()

    def test_what_an_earlier_holder_wrote_means_nothing(self, path: Path) -> None:
        path.write_text("1\n")
        assert lock_holder(path) is None

    def test_the_next_holder_writes_over_a_longer_pid(self, path: Path) -> None:
        path.write_text("123456789012\n")
        lock = RoleLock(path)
        lock.acquire()
        assert path.read_text() == f"{os.getpid()}\n"
        lock.release()

    @pytest.mark.parametrize("text", ["", "pid\n", "-5", "\0\0"])
    def test_a_holder_that_has_not_written_its_pid_is_0(self, path: Path, text: str) -> None:
        lock = RoleLock(path)
        lock.acquire()
        path.write_text(text)
        assert lock_holder(path) == 0
        lock.release()

    def test_waits_for_a_probe_that_is_put_aside(self, path: Path) -> None:
        """``shammah status``, stopped in the instant in which it looks, is no worker."""
        taken: list[bool] = []
        lock = RoleLock(path)
        starting = threading.Thread(target=lambda: taken.append(lock.acquire()))
        with path.open("w") as probe:
            fcntl.flock(probe, fcntl.LOCK_SH)
            starting.start()
            starting.join(0.5)  # far longer than a probe takes
        starting.join(LIMIT_S)
        assert taken == [True]
        lock.release()

    def test_is_freed_by_the_kernel_when_its_holder_is_killed(self, path: Path) -> None:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"True\n"
            assert lock_holder(path) == holder.pid
            assert not RoleLock(path).acquire()
            holder.send_signal(signal.SIGKILL)
            until(lambda: lock_holder(path) is None, "the lock is free")
        finally:
            holder.kill()
            holder.communicate()
        lock = RoleLock(path)
        assert lock.acquire()
        lock.release()

    def test_is_not_inherited_by_a_child(self, path: Path) -> None:
        lock = RoleLock(path)
        lock.acquire()
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE,
                                 close_fds=False, stderr=subprocess.DEVNULL)  # fmt: skip
        lock.release()
        try:
            # Between fork and exec the child has a copy for an instant.
            until(lambda: lock_holder(path) is None, "the lock is free")
        finally:
            child.kill()
            child.communicate()
