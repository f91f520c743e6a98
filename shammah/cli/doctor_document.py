"""Everything that ``shammah doctor`` finds, as one JSON object.

This side examines the machine, the directories and the workers. A child process on the workers'
side examines what needs torch or numpy (`workers.inference.startup.examination`).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from shammah import __version__
from shammah.bus.codec import to_document
from shammah.bus.endpoints import ROLES, lock_holder, open_endpoints
from shammah.bus.messages import Failed, NotAvailable
from shammah.bus.probe import GONE, ask_status
from shammah.cli.doctor_choices import list_choices
from shammah.cli.doctor_probes import (
    Problem,
    network_problems,
    probe_network,
    probe_servers,
    probe_start,
)
from shammah.errors import ShammahError
from shammah.models.catalogue import GIB, Machine, is_offline
from shammah.models.cgroups import memory_left, memory_limits
from shammah.models.machine import look, processor_name
from shammah.settings.model import Settings
from shammah.settings.report import changed_settings, for_strangers, without_secrets
from shammah.storage.disk import nearest_existing
from shammah.storage.paths import hub_cache
from shammah.supervision.identity import hub_endpoint
from shammah.terminal.screen import Screen
from shammah.terminal.wording import describe_state

EXAMINATION_S = 120.0
"""For the child process; torch alone takes seconds to import from a cold disk."""

PATIENCE_S = 1.0
"""After that, a line says what is being waited for."""

LEAST_DISK = 256 * 1024**2
"""Bytes; downloads leave so much free, too."""

SETUP = "Set Shammah up again with scripts/run."

Part = dict[str, Any]


def examine(
    settings: Settings,
    environ: Mapping[str, str],
    model: str | None,
    licence: str | None,
    *,
    problems: list[Problem],
    network: bool,
) -> Part:
    """Everything, and how long it took to find out. Problems are added to ``problems``."""
    cloud = settings.cloud_configured
    document: Part = {"shammah": __version__}
    took: dict[str, float] = {}

    def timed(name: str, find: Callable[[], Part]) -> Part:
        began = time.monotonic()
        found = find()
        took[name] = time.monotonic() - began
        return found

    def add(name: str, find: Callable[[], Part]) -> None:
        document[name] = timed(name, find)

    add("start", lambda: probe_start(environ, problems))
    add("machine", lambda: _machine(environ))
    add("directories", lambda: _directories(settings, environ, problems))
    document["hub"] = {
        "endpoint": without_secrets(hub_endpoint(environ)),
        "offline": is_offline(environ),
        "token": bool(environ.get("HF_TOKEN")),
    }
    problems += network_problems(environ)
    provider, cloud_model = settings.provider, settings.cloud_model
    key = bool(settings.cloud.api_key if provider is None else provider.key)
    if provider is not None:
        cloud_model = f"{settings.cloud_name}: {cloud_model}"
    document["cloud"] = {"key": key, "configured": cloud, "model": cloud_model}
    changed = changed_settings(settings, Settings(settings.home))
    document["settings"] = {name: for_strangers(name, value) for name, value in changed}
    add("workers", lambda: _workers(environ, problems, cloud=cloud))
    add("servers", lambda: probe_servers(settings, problems))
    if network:
        add("network", lambda: probe_network(settings, environ, problems))
    document |= timed("libraries", lambda: _libraries(environ, model, licence))
    document["choices"] = list_choices(settings, _as_machine(document["machine"]))
    document["took"] = took
    problems += _judge(document, cloud=cloud)
    document["problems"] = [asdict(problem) for problem in dict.fromkeys(problems)]
    document["ok"] = not any(problem.blocking for problem in problems)
    return document


def problem_of(error: ShammahError | Failed, *, blocking: bool = True) -> Problem:
    return Problem(error.code, error.message, error.hint, blocking)


# --- the machine --------------------------------------------------------------------------


def _machine(environ: Mapping[str, str]) -> Part:
    memory, found = psutil.virtual_memory(), look(environ)
    limits = memory_limits()
    return {
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count() or 0,
        "threads": os.cpu_count() or 0,
        "memory": memory.total,
        "memory_free": min([memory.available, *memory_left()]),
        "memory_limit": min([limit for limit in limits if limit < memory.total], default=0),
        "gpu_memory": found.gpu_memory,
        "mps": found.mps,
    }


def _as_machine(found: Part) -> Machine:
    memory = min(found["memory"], found["memory_limit"] or found["memory"])
    return Machine(memory, gpu_memory=found["gpu_memory"], mps=found["mps"])


def _directories(
    settings: Settings, environ: Mapping[str, str], problems: list[Problem]
) -> dict[str, Part]:
    found: dict[str, Part] = {}
    for name, path, variable in (
        ("home", settings.home, "SHAMMAH_HOME"),
        ("models", hub_cache(environ), "HF_HOME"),
    ):
        found[name] = _directory(path)
        free, failure = found[name]["free"], found[name]["error"]
        if failure:
            why = f"Cannot write to {path}: {failure}."
            hint = f"Change its owner, or set {variable} to another directory."
            problems.append(Problem("directory_unwritable", why, hint))
        elif free < LEAST_DISK:
            why = f"Only {free / 1e6:.0f} MB free on the disk of {path}."
            hint = f"Free some space, or set {variable} to a directory on another disk."
            problems.append(Problem("disk_full", why, hint))
    try:
        found["runtime"] = _directory(open_endpoints(environ).runtime)
    except ShammahError as error:
        problems.append(problem_of(error))
    return found


def _directory(path: Path) -> Part:
    """Say whether it can be written, where it is or will be."""
    there, failure, free = nearest_existing(path), "", 0
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        failure = error.strerror or str(error)
    return {"path": str(path), "exists": path.exists(), "free": free, "error": failure}


# --- workers ------------------------------------------------------------------------------


def _workers(
    environ: Mapping[str, str], problems: list[Problem], *, cloud: bool
) -> dict[str, Part]:
    try:
        endpoints = open_endpoints(environ)
    except ShammahError:
        return {}  # reported with the directories
    found: dict[str, Part] = {}
    for role in ROLES:
        blocking = role == "inference" and not cloud
        pid = lock_holder(endpoints.lock(role))
        found[role] = {"running": pid is not None, "pid": pid, "state": None, "said": ""}
        found[role]["held"] = []
        found[role]["socket"] = (endpoints.runtime / f"{role}.sock").exists()
        if pid is None:
            continue
        try:
            status = ask_status(endpoints, role).status
        except ShammahError as error:
            if error.code == GONE:
                found[role] |= {"running": False, "pid": None}
                continue
            problems.append(problem_of(error, blocking=blocking))
            continue
        state = status.state
        found[role] |= {"state": to_document(state), "said": describe_state(state)}
        found[role]["held"] = list(status.held)
        if isinstance(state, Failed):
            problems.append(problem_of(state, blocking=blocking))
        elif isinstance(state, NotAvailable):
            problems.append(Problem("not_available", state.reason, state.hint, blocking))
    return found


# --- the workers' side --------------------------------------------------------------------


def _libraries(environ: Mapping[str, str], model: str | None, licence: str | None) -> Part:
    """Return what the child process finds, or an ``examination`` with the error."""
    command = [sys.executable, "-P", "-m", "workers.inference.startup.examination"]
    command += ["--model", model] if model else []
    command += ["--licence", licence] if licence else []
    try:
        found: Part = json.loads(run_child(command, environ))
        return found
    except (ShammahError, OSError, ValueError) as error:
        failure = {"code": "examination_failed", "message": str(error), "hint": SETUP}
        return {"examination": {"error": failure}}


def run_child(
    command: list[str], environ: Mapping[str, str], limit: float = EXAMINATION_S
) -> bytes:
    """Return what ``command`` prints. A line says so while it takes long.

    Raises:
        ShammahError: ``examination_failed``: it ended badly, or has not ended in time.
    """
    screen, began = Screen(environ, sys.stderr), time.monotonic()
    with subprocess.Popen(
        command,
        env=dict(environ),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as child:
        try:
            while True:
                try:
                    out, err = child.communicate(timeout=PATIENCE_S)
                    break
                except subprocess.TimeoutExpired:
                    waited = time.monotonic() - began
                    if waited > limit:
                        why = f"Examining the libraries took over {limit:.0f} s."
                        raise ShammahError("examination_failed", why) from None
                    screen.live(f"importing the libraries ... {waited:.0f} s")
        finally:
            screen.end_live()
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
    if child.returncode == 0:
        return out
    lines = err.decode("utf-8", "replace").strip().splitlines()
    said = lines[-1] if lines else f"exit status {child.returncode}"
    raise ShammahError("examination_failed", f"Couldn't examine the libraries: {said}")


# --- what is wrong ------------------------------------------------------------------------


def _judge(document: Part, *, cloud: bool) -> Iterator[Problem]:
    """Judge what the child process has found."""
    for name in ("examination", "libraries", "accelerator", "kernels", "model"):
        error = document.get(name, {}).get("error")
        if error:
            yield Problem(error["code"], error["message"], error["hint"] or SETUP, not cloud)
    kernels = document.get("kernels", {})
    if kernels.get("compiled") is False:
        why = "The native engine's kernels are not compiled."
        hint = "Its first start compiles them, which takes longer."
        yield Problem("kernels_missing", why, hint, blocking=False)
    yield from _judge_model(document, cloud=cloud)


def _judge_model(document: Part, *, cloud: bool) -> Iterator[Problem]:
    model = document.get("model", {})
    if model.get("present") and not model["here"]:
        why = f"{model['name']} is on this disk, but has not been verified."
        hint = f"The next start verifies it. Now: `shammah models verify {model['name']} --repair`."
        yield Problem("model_unverified", why, hint, blocking=False)
    if model.get("needed", 0) > model.get("free", 0):
        why = f"{model['name']} needs {model['needed'] / GIB:.1f} GiB, more than is free now."
        hint = "Close other programs, or choose a smaller model: `shammah models use 0.5B`."
        yield Problem("memory_low", why, hint, blocking=False)
    fallback = model.get("fallback") or {}
    if error := fallback.get("error"):
        yield Problem(error["code"], error["message"], error["hint"], not cloud)
    if model.get("here") is False and document["hub"]["offline"]:
        answers = cloud or (bool(fallback) and "error" not in fallback)
        yield Problem(
            "model_missing",
            f"{model['name']} is not on this disk, and HF_HUB_OFFLINE forbids a download.",
            "Unset HF_HUB_OFFLINE, or use --model starter.",
            blocking=not answers,
        )
