"""Each worker may do what its role needs, and nothing else: the kernel holds it to that.

`confine` is called once, before a worker has a second thread, so that all of them are held: it
looks where things are on this machine (`places`), takes from that what the role may do (`policy`),
and tells the kernel (`kernel`, `filter`). What the kernel cannot hold is said, and the worker goes
on. Who must start other workers does so through a process of before (`launcher`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from shammah.bus.record import record
from shammah.models.machine import ask_ahead
from shammah.settings.model import Settings
from workers.confinement import kernel, places
from workers.confinement.byte_code import compile_noted, note_compiled
from workers.confinement.filter import Network, filter_program
from workers.confinement.kernel import CHANGE, DEVICE, EVERYTHING, READ, REMOVE, Access, Rules
from workers.confinement.policy import TEMPORARY, Policy, policy_for, training_policy

log = logging.getLogger(__name__)

FILES, NETWORK, PROGRAMS, PROCESSES = "files", "network", "programs", "processes"

DEVICES_S = 5.0

OFF = "The setting confine is off."
VLLM = "vLLM starts processes of its own, so a worker that may use it is not confined."
MAC = "On macOS workers are not confined: its profile has not been tried on a Mac yet."
NO_LANDLOCK = "This kernel has no Landlock, or it is not switched on: files are open to the worker."
NO_FILTER = "The kernel takes no filter for system calls"
MIRROR = "HF_ENDPOINT names a mirror, which may send a download on to any port: none is refused."


@record
class Confinement:
    """What holds of a worker (of `FILES`, `NETWORK`, `PROGRAMS` and `PROCESSES`), and why the rest
    does not, in sentences."""

    holds: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    policy: Policy = Policy()


def confine(
    role: str, settings: Settings, environ: Mapping[str, str], runtime: Path
) -> Confinement:
    """Hold this process to what ``role`` needs, for good.

    Args:
        runtime: the directory of sockets and locks.
    """
    if exempt := _exemption(role, settings):
        return Confinement(missing=(exempt,))
    note = runtime / "compiled"
    compile_noted(note)
    ask_ahead(environ)
    _make_gpu_devices()
    wanted = settings.model if role == "inference" and not settings.server else ""
    sends = role in ("cloud", "download", "servers") or bool(settings.server)
    found = places.look(wanted, environ, certificates=sends)
    policy = policy_for(role, settings, environ, runtime, found)
    _prepare(policy)
    _use_own_temporary_files(settings.home / TEMPORARY / role)
    held = _hold(policy)
    if FILES in held.holds:
        note_compiled(note)
    for why in held.missing:
        log.warning("not confined: %s", why)
    log.info("confined: %s", ", ".join(held.holds) or "nothing")
    return held


def confine_thread(
    held: Confinement, settings: Settings, environ: Mapping[str, str], request: Request
) -> None:
    """Hold this thread, and those that it starts, to the files of one request."""
    if FILES in held.holds:
        found = places.look(request.model, environ)
        policy = training_policy(held.policy, settings.home, found, request.reads, request.writes)
        _prepare(policy)
        kernel.restrict(kernel.landlock_version(), _rules(policy, scopes=False))


@record
class Request:
    """What a request to a train worker names: a model, and files."""

    model: str = ""
    reads: tuple[Path, ...] = ()
    writes: tuple[Path, ...] = ()


def _exemption(role: str, settings: Settings) -> str:
    if settings.confine == "off":
        return OFF
    if sys.platform != "linux":
        return MAC
    engines = ("auto", "vllm")
    if role == "inference" and settings.inference.engine in engines and find_spec("vllm"):
        return VLLM
    return ""


def _prepare(policy: Policy) -> None:
    """Make what is to be allowed: the kernel allows only what is there."""
    for directory in (*policy.awaited, *policy.changes):
        with contextlib.suppress(OSError):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in policy.files:
        with contextlib.suppress(OSError):
            file.touch(0o600)


def _make_gpu_devices() -> None:
    """Have NVIDIA's own program make the device that CUDA would have it make when it is first used:
    a confined process can start none, and may control the devices that are there now."""
    command = shutil.which("nvidia-modprobe")
    if command and not os.path.exists("/dev/nvidia-uvm"):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run([command, "-u", "-c=0"], timeout=DEVICES_S, check=False)


def _use_own_temporary_files(directory: Path) -> None:
    """Give libraries a directory for temporary files, which no other program reads or writes."""
    shutil.rmtree(directory, ignore_errors=True)  # what a killed worker has left
    with contextlib.suppress(OSError):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(directory)


def _hold(policy: Policy) -> Confinement:
    holds, missing = [], []
    version = kernel.landlock_version()
    narrow = policy.network is not Network.NONE
    try:
        if not version:
            missing.append(NO_LANDLOCK)
        else:
            kernel.restrict(version, _rules(policy))
            holds.append(FILES)
            missing += _lacking(version, policy)
    except OSError as error:
        version = 0
        missing.append(f"Landlock refused the rules ({error.strerror}).")
    try:
        program = filter_program(platform.machine(), policy.network)
        if program is None:
            missing.append(f"{NO_FILTER} of {platform.machine()} processors that is known here.")
        else:
            kernel.filter_calls(program)
            holds += [PROGRAMS, PROCESSES]
            if not narrow or (version >= kernel.PORTS_SINCE and policy.ports is not None):
                holds.append(NETWORK)
    except OSError as error:
        missing.append(f"{NO_FILTER} ({error.strerror}).")
    return Confinement(tuple(holds), tuple(missing), policy)


def _lacking(version: int, policy: Policy) -> list[str]:
    """What this version of Landlock cannot hold."""
    found = []
    if policy.network is not Network.NONE and policy.ports is None:
        found.append(MIRROR)
    elif policy.network is not Network.NONE and version < kernel.PORTS_SINCE:
        found.append("This kernel's Landlock knows no ports (Linux 6.7 has that).")
    if version < kernel.SCOPES_SINCE:
        found.append("This kernel's Landlock lets signals through (Linux 6.12 holds them).")
    return found


def _rules(policy: Policy, *, scopes: bool = True) -> Rules:
    """The policy in Landlock's terms."""
    scope = kernel.SCOPE_ABSTRACT_SOCKETS | kernel.SCOPE_SIGNALS if scopes else 0
    ports = policy.ports if scopes else None
    if not policy.files_held:
        # What is not handled is allowed, but for moves between directories.
        handled = Access.EXECUTE | Access.REFER
        return Rules(handled, ((Path("/"), Access.REFER),), ports, scope)
    allowed = [(path, READ) for path in (*policy.reads, *policy.awaited)]
    allowed += [(path, CHANGE) for path in (*policy.changes, *policy.files)]
    allowed += [(path, REMOVE) for path in policy.removes]
    allowed += [(path, DEVICE) for path in policy.devices]
    return Rules(EVERYTHING, tuple(allowed), ports, scope)
