"""``shammah doctor``: what there is, what would be done with it and why, and what is wrong.

This side looks at the machine, the directories and the workers. What needs torch or numpy is
looked at by a child process of the workers' side (`workers.inference.startup.examination`).
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

import click
import psutil

from shammah import __version__
from shammah.bus.codec import to_document
from shammah.bus.endpoints import ROLES, lock_holder, open_endpoints
from shammah.bus.messages import Failed, NotAvailable
from shammah.bus.probe import GONE, ask_status
from shammah.cli.doctor_bundle import check_place, write_bundle
from shammah.cli.doctor_choices import list_choices
from shammah.cli.doctor_probes import Problem, network_problems, probe_network, probe_start
from shammah.cli.doctor_report import HANGING, report
from shammah.cli.options import (
    Command,
    json_option,
    licence_option,
    load_checked_settings,
    model_option,
)
from shammah.errors import ExitCode, ShammahError
from shammah.models.catalogue import GIB, Machine, is_offline
from shammah.models.cgroups import memory_left, memory_limits
from shammah.models.machine import look
from shammah.settings.load import home_directory
from shammah.settings.model import Settings
from shammah.settings.report import changed_settings, for_strangers, without_secrets
from shammah.storage.disk import nearest_existing
from shammah.storage.paths import hub_cache
from shammah.supervision.identity import hub_endpoint
from shammah.terminal.output import print_json
from shammah.terminal.screen import Screen
from shammah.terminal.wording import describe_state, printable
from shammah.terminal.wrap import fold

EXAMINATION_S = 120.0
"""For what the child process looks at; torch alone takes seconds to import from a cold disk."""

PATIENCE_S = 1.0
"""After that, a line says what is waited for."""

LEAST_DISK = 256 * 1024**2
"""Bytes; downloads leave so much free, too."""

Part = dict[str, Any]


@click.command(cls=Command)
@model_option
@licence_option
@click.option("--network", is_flag=True, help="Connect to the Hub and to Claude; send nothing.")
@click.option("--bundle", type=click.Path(dir_okay=False), help="Write a zip for a bug report.")
@json_option("One object; sizes in bytes.")
def doctor(
    model: str | None, licence: str | None, network: bool, bundle: str | None, as_json: bool
) -> int:
    """Look at everything: what there is, what auto chooses and why, and what is wrong.

    Measures how fast this machine computes, once. Keys and tokens are never shown.

    Examples:
      shammah doctor                       what to paste into a bug report
      shammah doctor --model 7B            how that one would be computed, and why
      shammah doctor --network             can the Hub and Claude be reached?
      shammah doctor --bundle report.zip   with logs and events, no private text
      shammah doctor --json | jq .problems
    Exit status: 0 all is well, 1 something would keep Shammah from answering.
    """
    if bundle:
        check_place(Path(bundle))
    environ: Mapping[str, str] = os.environ
    problems: list[Problem] = []
    try:
        settings, known = load_checked_settings(model, licence), True
        # The child process has another working directory.
        model, environ = settings.model, {**environ, "SHAMMAH_HOME": str(settings.home)}
    except ShammahError as error:
        settings, known = Settings(home_directory(environ)), False
        problems.append(_problem(error))
    document = _document(settings, environ, model, licence, problems, network=network)
    blocking = any(problem.blocking for problem in problems)
    document["problems"] = [asdict(problem) for problem in dict.fromkeys(problems)]
    document["ok"] = not blocking
    parts = []
    if bundle:
        own = settings if known else None
        parts = write_bundle(Path(bundle), document, own, home=settings.home, environ=environ)
    if as_json:
        print_json(document)
    else:
        screen = Screen(environ, sys.stdout)
        for line, wrong in report(document):
            shown = fold(line, screen.columns, HANGING) if screen.terminal else line
            screen.error(shown) if wrong else screen.line(shown)
    if parts:
        told = f"{bundle} holds {', '.join(parts)}. Look through it before you send it to anybody."
        Screen(environ, sys.stderr).line(printable(told))
    return ExitCode.FAILED if blocking else ExitCode.OK


def _document(
    settings: Settings,
    environ: Mapping[str, str],
    model: str | None,
    licence: str | None,
    problems: list[Problem],
    *,
    network: bool,
) -> Part:
    """Everything, and how long it took to find out."""
    cloud, key = settings.cloud_configured, bool(settings.cloud.api_key)
    took: dict[str, float] = {}

    def timed(name: str, look: Callable[[], Part]) -> Part:
        began = time.monotonic()
        found = look()
        took[name] = time.monotonic() - began
        return found

    document: Part = {"shammah": __version__}
    document["start"] = timed("start", lambda: probe_start(environ, problems))
    document["machine"] = timed("machine", lambda: _machine(environ))
    document["directories"] = timed(
        "directories", lambda: _directories(settings, environ, problems)
    )
    document["hub"] = {
        "endpoint": without_secrets(hub_endpoint(environ)),
        "offline": is_offline(environ),
        "token": bool(environ.get("HF_TOKEN")),
    }
    problems += network_problems(environ)
    document["cloud"] = {"key": key, "configured": cloud, "model": settings.cloud.model}
    changed = changed_settings(settings, Settings(settings.home))
    document["settings"] = {name: for_strangers(name, value) for name, value in changed}
    document["workers"] = timed("workers", lambda: _workers(environ, problems, cloud=cloud))
    if network:
        document["network"] = timed("network", lambda: probe_network(settings, environ, problems))
    document |= timed("libraries", lambda: _examination(environ, model, licence))
    document["choices"] = list_choices(settings, _as_machine(document["machine"]))
    document["took"] = took
    problems += _judge(document, cloud=cloud)
    return document


def _problem(error: ShammahError, *, blocking: bool = True) -> Problem:
    return Problem(error.code, error.message, error.hint, blocking)


# --- the machine --------------------------------------------------------------------------


def _machine(environ: Mapping[str, str]) -> Part:
    memory, found = psutil.virtual_memory(), look(environ)
    limits = memory_limits()
    return {
        "system": platform.platform(),
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
            why = f"{path} cannot be written to: {failure}."
            hint = f"Make it yours, or set {variable} to another directory."
            problems.append(Problem("directory_unwritable", why, hint))
        elif free < LEAST_DISK:
            why = f"The disk of {path} has {free / 1e6:.0f} MB left."
            hint = f"Make room, or set {variable} to a directory on another disk."
            problems.append(Problem("disk_full", why, hint))
    try:
        found["runtime"] = _directory(open_endpoints(environ).runtime)
    except ShammahError as error:
        problems.append(_problem(error))
    return found


def _directory(path: Path) -> Part:
    """Whether it can be written, where it is or will be."""
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
        return {}  # told with the directories
    found: dict[str, Part] = {}
    for role in ROLES:
        pid = lock_holder(endpoints.lock(role))
        found[role] = {"running": pid is not None, "pid": pid, "state": None, "said": ""}
        found[role]["socket"] = (endpoints.runtime / f"{role}.sock").exists()
        if pid is None:
            continue
        try:
            state = ask_status(endpoints, role).status.state
        except ShammahError as error:
            if error.code == GONE:
                found[role] |= {"running": False, "pid": None}
                continue
            problems.append(_problem(error, blocking=role == "inference" and not cloud))
            continue
        found[role] |= {"state": to_document(state), "said": describe_state(state)}
        blocking = role == "inference" and not cloud
        if isinstance(state, Failed):
            problems.append(Problem(state.code, state.message, state.hint, blocking))
        elif isinstance(state, NotAvailable):
            problems.append(Problem("not_available", state.reason, state.hint, blocking))
    return found


# --- the workers' side --------------------------------------------------------------------


def _examination(environ: Mapping[str, str], model: str | None, licence: str | None) -> Part:
    """What the child process finds; an ``examination`` with an error, if it finds nothing."""
    command = [sys.executable, "-P", "-m", "workers.inference.startup.examination"]
    command += ["--model", model] if model else []
    command += ["--licence", licence] if licence else []
    try:
        found: Part = json.loads(run_child(command, environ))
        return found
    except (ShammahError, OSError, ValueError) as error:
        hint = "Set Shammah up again: scripts/run does it."
        told = {"code": "examination_failed", "message": str(error), "hint": hint}
        return {"examination": {"error": told}}


def run_child(
    command: list[str], environ: Mapping[str, str], limit: float = EXAMINATION_S
) -> bytes:
    """What ``command`` prints; while it takes long, a line says so.

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
                        why = f"The examination of the libraries took over {limit:.0f} s."
                        raise ShammahError("examination_failed", why) from None
                    screen.live(f"measuring and importing the libraries ... {waited:.0f} s")
        finally:
            screen.end_live()
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
    if child.returncode == 0:
        return out
    lines = err.decode("utf-8", "replace").strip().splitlines()
    said = lines[-1] if lines else f"exit status {child.returncode}"
    raise ShammahError("examination_failed", f"The libraries could not be examined: {said}")


# --- what is wrong ------------------------------------------------------------------------


def _judge(document: Part, *, cloud: bool) -> Iterator[Problem]:
    """What is wrong with what the child process has found."""
    for name in ("examination", "libraries", "accelerator", "speed", "kernels", "model"):
        error = document.get(name, {}).get("error")
        if error:
            hint = error["hint"] or "Set Shammah up again: scripts/run does it."
            yield Problem(error["code"], error["message"], hint, not cloud)
    kernels = document.get("kernels", {})
    if kernels.get("compiled") is False:
        why = "The native engine's kernels are not compiled; its first start takes longer."
        hint = f"{sys.executable} -P -m workers.inference.engines.native does it now."
        yield Problem("kernels_missing", why, hint, blocking=False)
    yield from _judge_model(document, cloud=cloud)


def _judge_model(document: Part, *, cloud: bool) -> Iterator[Problem]:
    model = document.get("model", {})
    if model.get("present") and not model["here"]:
        why = f"{model['name']} is on this disk, but nobody has checked that it is whole."
        hint = f"The next start does it; `shammah models verify {model['name']} --repair`: now."
        yield Problem("model_unverified", why, hint, blocking=False)
    if model.get("needed", 0) > model.get("free", 0):
        why = f"{model['name']} needs {model['needed'] / GIB:.1f} GiB, more than is free now."
        hint = "End other programs, or choose a smaller model: `shammah models use 0.5B`."
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
