"""Workers' lives, seen from a frontend: start, attach, replace, stop.

A worker belongs to the user, not to a frontend: the first that needs it starts it, all share it,
and the lock in the runtime directory says whether it runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from shammah.bus.client import Peer, new_request_id
from shammah.bus.endpoints import Endpoints, lock_holder, open_endpoints
from shammah.bus.messages import (
    ClientInfo,
    Event,
    Failed,
    Identity,
    NotAvailable,
    Stop,
    Welcome,
)
from shammah.bus.record import record
from shammah.bus.transfers import Transferring
from shammah.errors import ExitCode, ShammahError
from shammah.models.catalogue import cached_snapshot, hub_model, is_offline
from shammah.settings.model import Settings
from shammah.storage.disk import open_log
from shammah.storage.paths import hub_cache
from shammah.supervision.identity import identity
from shammah.supervision.oom_record import attempt_file, explain_death
from shammah.supervision.refusals import WorkerBusyError, WorkerInUseError
from shammah.supervision.secrets import SECRETS

START_S = 20.0
"""A worker binds its sockets before it imports anything heavy, usually within 0.2 s."""

STOP_S = 5.0
"""Half of it for the request, most of the rest for SIGTERM; as long again for SIGKILL."""

POLL_S = 0.02

STILL_S = 1.0
"""More than this between two looks counts as this much: the machine was busy or suspended."""

RESTARTS = 3
RESTART_WINDOW_S = 60.0
"""A worker that dies more often than this is not restarted automatically."""

_LOG_LINE = re.compile(r"[-0-9]+ [:,0-9]+ ([A-Z]+) [a-z]+\[([0-9]+)\] ")
"""As `workers.logs` begins each: level and process."""


class Child(Protocol):
    """What is asked of a worker that this process has started; see `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...


class Launcher(Protocol):
    """Starts and signals workers for a process that may not (see `workers.confinement`)."""

    def start(self, spec: WorkerSpec) -> Child: ...

    def signal(self, role: str, number: int) -> bool: ...


class Children:
    """The workers that this process started and that still run. They are held so that dead ones
    are reaped, and because Popen warns when it is dropped while its process lives on.

    ``launcher`` starts them instead, where there is one."""

    launcher: Launcher | None = None

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()  # links start their workers side by side

    def add(self, child: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._running = [started for started in self._running if started.poll() is None]
            self._running.append(child)

    def __iter__(self) -> Iterator[subprocess.Popen[bytes]]:
        return iter(tuple(self._running))


children = Children()


class RestartBudget:
    """How often a worker may be restarted within a window. Pure: the clock is passed in."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._starts: deque[float] = deque(maxlen=RESTARTS)

    def spend(self) -> bool:
        """Count a start, and return false if there were too many."""
        now = self._clock()
        if len(self._starts) == RESTARTS and now - self._starts[0] < RESTART_WINDOW_S:
            return False
        self._starts.append(now)
        return True


@record
class WorkerSpec:
    """The worker that a frontend wants: ``arguments`` follow the role on its command line."""

    identity: Identity
    arguments: tuple[str, ...]
    environ: Mapping[str, str]
    log_file: Path

    @property
    def role(self) -> str:
        return self.identity.role


class Rung(StrEnum):
    """What it took to stop a worker."""

    REQUEST = "request"
    SIGTERM = "SIGTERM"
    SIGKILL = "SIGKILL"


def worker_spec(settings: Settings, role: str, environ: Mapping[str, str]) -> WorkerSpec:
    """Return the worker of ``role`` for ``settings``, with no more secrets than it needs."""
    arguments: list[str] = []
    if role in ("inference", "servers", "gateway"):
        arguments += ["--model", settings.model, "--licence", settings.licence]
    if role == "gateway":
        own = settings.gateway
        arguments += ["--port", str(own.port), "--socket", own.socket, "--keep-alive", "-1"]
        arguments += [f"--origin={origin}" for origin in own.origins]
    # A gateway starts the others, and so needs what they need.
    needs = {role, *SECRETS.values()} if role == "gateway" else {role}
    kept = {name: value for name, value in environ.items() if SECRETS.get(name, role) in needs}
    kept["SHAMMAH_HOME"] = str(settings.home)
    return WorkerSpec(
        identity(settings, role, environ=environ),
        tuple(arguments),
        kept,
        settings.home / "logs" / f"{role}.log",
    )


def worker_command(spec: WorkerSpec) -> list[str]:
    # -P: the user's directory must not come first on sys.path; a stray workers/ in it would
    # run instead of ours.
    return [sys.executable, "-P", "-m", "workers", spec.role, *spec.arguments]


def spawn(spec: WorkerSpec) -> subprocess.Popen[bytes]:
    """Start the worker in a session of its own, so that Ctrl-C never reaches it.

    Raises:
        ShammahError: ``worker_start_failed``, when the program cannot be run.
    """
    try:
        with open(open_log(spec.log_file), "ab") as log:
            child = subprocess.Popen(
                worker_command(spec),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(spec.environ),
                cwd="/",
                start_new_session=True,
            )
    except OSError as error:
        raise ShammahError(
            "worker_start_failed",
            f"Couldn't start the {spec.role} worker: {error.strerror}: {error.filename}.",
            "Check that this program exists and is executable. `shammah doctor` tells more.",
        ) from error
    children.add(child)
    return child


def connect(
    settings: Settings, role: str, program: str, environ: Mapping[str, str], *, join: bool = False
) -> Peer:
    """Connect to the worker of ``role`` for ``settings``; ``program`` is the client's name.

    Raises:
        ShammahError: see `ensure`, which also says what ``join`` means.
    """
    client = ClientInfo(program, os.getpid())
    spec = worker_spec(settings, role, environ)
    return ensure(spec, open_endpoints(environ), client, join=join)


def ensure(
    spec: WorkerSpec,
    endpoints: Endpoints,
    client: ClientInfo,
    *,
    on_change: Callable[[Event | None], None] = lambda event: None,
    on_presence: Callable[[bool], None] = lambda present: None,
    join: bool = False,
) -> Peer:
    """Connect to the worker that ``spec`` describes, and start it if needed.

    A running worker with another identity, or one that has failed, is replaced unless another
    client uses it.

    Args:
        spec: the worker that is wanted.
        endpoints: where the workers' sockets are.
        client: this frontend.
        on_change: see `Peer`.
        on_presence: called at every look with whether a worker runs that may be the wanted one.
            Workers that this call starts or stops do not count.
        join: accept a running worker of the same model, whatever else it was started with.
            Workers do so, since they lack the secrets that frontends have.

    Raises:
        ShammahError: ``worker_start_failed`` (with the end of its log), ``worker_silent``,
            ``protocol_version``.
        WorkerInUseError: another client uses a worker with another identity.
        WorkerBusyError: such a worker has downloads under way.
    """
    peer = Peer(endpoints, spec.role, client, on_change, _explainer(spec.role, endpoints))
    try:
        found = _attach(peer, spec, endpoints, client.program, on_presence, join=join)
    except BaseException:
        peer.close()
        raise
    peer.pin(found)
    return peer


def _explainer(role: str, endpoints: Endpoints) -> Callable[[int], ShammahError | None]:
    """Return what can explain the death of a worker of ``role`` (see `Peer`)."""
    record = attempt_file(endpoints.runtime)
    return lambda pid: explain_death(record, pid) if role == "inference" else None


def lend_hub_token(
    settings: Settings, environ: Mapping[str, str], endpoints: Endpoints, client: ClientInfo
) -> None:
    """Start the download worker with the Hub token of this frontend, if it may be needed.

    The inference worker, which requests a missing model, does not get that secret, and could
    only start a download worker without it. It will meet and report whatever fails here.
    """
    token = any(environ.get(name) for name, role in SECRETS.items() if role == "download")
    if not token or is_offline(environ):
        return
    from shammah.models.machine import look  # psutil takes 15 ms that others need not spend

    machine = look(environ)
    model_id = hub_model(
        settings.model,
        machine.memory,
        permissive=settings.permissive,
        gpu_memory=machine.gpu_memory,
    )
    if model_id is None or cached_snapshot(hub_cache(environ), model_id) is not None:
        return
    with contextlib.suppress(ShammahError):
        ensure(worker_spec(settings, "download", environ), endpoints, client).close()


def _attach(
    peer: Peer,
    spec: WorkerSpec,
    endpoints: Endpoints,
    program: str,
    on_presence: Callable[[bool], None],
    *,
    join: bool,
) -> Identity:
    """Wait for the wanted worker's welcome, and return its identity."""
    child: Child | None = None
    budget = RestartBudget()
    log_start, waited, looked = 0, 0.0, time.monotonic()
    while True:
        absent = lock_holder(endpoints.lock(spec.role)) is None
        code = child.poll() if child else None
        others = child is None or code == ExitCode.ALREADY_RUNNING
        on_presence(others and not absent)
        if absent and (others or code is not None):
            killed = code is not None and code < 0
            if child is not None and not others and not (killed and budget.spend()):
                raise _start_failed(spec, child, log_start)
            log_start = _size(spec.log_file)
            child = children.launcher.start(spec) if children.launcher else spawn(spec)
        welcome = peer.wait_welcome(POLL_S)
        if welcome is not None:
            found = welcome.identity
            if found.digest == spec.identity.digest or (
                join and found.model == spec.identity.model
            ):
                failed = isinstance(welcome.event.status.state, Failed | NotAvailable)
                if not failed or child is not None or welcome.others:
                    return found
                # The cause of the failure may be fixed by now: let a new one try.
            elif child is not None and welcome.pid == child.pid:
                raise ShammahError(
                    "worker_mismatch",
                    f"The {spec.role} worker that started is not the one that was requested.",
                    "The settings changed in the meantime. Try again.",
                )
            else:
                _check_idle(spec.identity, welcome, program)
            on_presence(False)
            stop(spec.role, endpoints, peer)
            peer.forget_welcome()
            child = None
        now = time.monotonic()
        # While this process was stopped (Ctrl-Z), nothing could answer it.
        waited, looked = waited + min(now - looked, STILL_S), now
        if waited > START_S:
            raise _silent(spec)


def _check_idle(wanted: Identity, welcome: Welcome, program: str) -> None:
    """Refuse to replace a worker that is in use or has something to finish."""
    if welcome.others:
        raise WorkerInUseError(wanted, welcome, program)
    state = welcome.event.status.state
    if isinstance(state, Transferring) and state.transfers:
        raise WorkerBusyError(wanted, welcome.identity, state.transfers)


def _silent(spec: WorkerSpec) -> ShammahError:
    return ShammahError(
        "worker_silent",
        f"The {spec.role} worker is running but does not respond.",
        f"To stop it: `shammah stop {spec.role}`. Its log: {spec.log_file}.",
    )


def _start_failed(spec: WorkerSpec, child: Child, log_start: int) -> ShammahError:
    code = child.returncode or 0
    if code < 0:
        said = f"it was killed repeatedly ({signal.Signals(-code).name})."
    elif code == 0:
        said = "it was stopped at once."
    else:
        said = _last_words(spec, child.pid, log_start) or f"it ended with status {code}."
    return ShammahError(
        "worker_start_failed",
        f"The {spec.role} worker could not start: {said}",
        f"Details: {spec.log_file}.",
    )


def _last_words(spec: WorkerSpec, pid: int, log_start: int) -> str:
    """Return the last line that worker ``pid`` wrote as its reason to end; others log there."""
    try:
        with open(spec.log_file, errors="replace") as log:
            log.seek(log_start)
            lines = log.read().strip().splitlines()
    except OSError:  # it was deleted
        return ""
    for line in reversed(lines):
        logged = _LOG_LINE.match(line)
        if logged is None or (int(logged[2]) == pid and logged[1] not in ("INFO", "DEBUG")):
            return line.removeprefix("shammah worker: ")
    return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def stop(role: str, endpoints: Endpoints, peer: Peer | None = None) -> Rung | None:
    """Stop the worker of ``role``: request, SIGTERM, SIGKILL, each with its own timeout.

    Only a process that holds our lock is ever signalled.

    Returns:
        The rung that was needed; ``None`` if no worker was running.

    Raises:
        ShammahError: ``worker_unstoppable``.
    """
    lock = endpoints.lock(role)
    if lock_holder(lock) is None:
        return None
    deadline = time.monotonic() + STOP_S
    own = peer is None
    asking = Peer(endpoints, role, None) if peer is None else peer
    try:
        while time.monotonic() < deadline - STOP_S / 2:
            # Repeated: the connection may not be established yet.
            asking.send(Stop(new_request_id()))
            if _gone(lock, time.monotonic() + 10 * POLL_S):
                return Rung.REQUEST
    finally:
        if own:
            asking.close()
    for number, rung, patience in (
        (signal.SIGTERM, Rung.SIGTERM, 0.4 * STOP_S),
        (signal.SIGKILL, Rung.SIGKILL, STOP_S),
    ):
        if not _signal(endpoints, role, number) or _gone(lock, time.monotonic() + patience):
            return rung
    why = f"Couldn't stop the {role} worker, not even with SIGKILL."
    raise ShammahError("worker_unstoppable", why)


def _gone(lock: Path, until: float) -> bool:
    while True:
        late = time.monotonic() > until  # read before the last look
        if lock_holder(lock) is None:
            return True
        if late:
            return False
        time.sleep(POLL_S)


def _signal(endpoints: Endpoints, role: str, number: int) -> bool:
    if children.launcher is not None:
        return children.launcher.signal(role, number)
    return signal_holder(endpoints.lock(role), number)


def signal_holder(lock: Path, number: int) -> bool:
    """Signal the process that holds the lock, and return false if none does any more."""
    pid = lock_holder(lock)
    if not pid:
        return pid is not None
    if not hasattr(os, "pidfd_open"):  # macOS
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return True
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # The pid was read before the handle was opened: it may have been given to another
        # process in between, but not if it still holds the lock.
        if lock_holder(lock) != pid:
            return False
        signal.pidfd_send_signal(process, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(process)
    return True
