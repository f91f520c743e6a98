"""What a person is told once, at the first prompt: which model and why, what leaves the machine,
and what that costs. What has changed since then is told at the prompt after that.

Everything is found out in the background and shown above the line that is being typed.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from shammah.models.catalogue import (
    AUTO,
    GIB,
    STARTER,
    Machine,
    cached_snapshot,
    catalogue_model,
    hub_model,
    is_offline,
)
from shammah.models.machine import look
from shammah.settings.model import Settings
from shammah.storage.paths import hub_cache
from shammah.terminal.wording import describe_cost, describe_size, short_name

MARKER = "welcomed"
"""A file in the home with what the person has read, one fact a line."""

GREETING, MODEL, CLOUD = "greeting", "model", "cloud"

Told = dict[str, list[str]]
"""A fact, by what sets it apart from what it may change into; and its lines."""


class FirstRun:
    """The welcome. Nothing, for whom it has been shown to.

    Args:
        settings: those in force.
        environ: where the cache is, and whether the network may be used.
        local_only: Claude is not asked in this session.
        put: given what makes the lines, once for all terminals of this home.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        *,
        local_only: bool,
        put: Callable[[Callable[[], list[str]]], None],
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._local_only = local_only
        self._put = put
        use = settings.cloud.use if settings.cloud_configured and not local_only else "none"
        self._settled = f"settings {settings.model} {settings.licence} {use}"
        self._found = threading.Event()
        self._late = False

    def start(self) -> None:
        """Begin to find out, unless all was told under such settings: it takes a while."""
        if self._settled in _read(self._settings.home):
            self._found.set()
            return
        threading.Thread(target=self._find, name="first-run", daemon=True).start()

    def settle(self, seconds: float) -> None:
        """Wait until it is found out; what takes longer is not told, or it would come after the
        answer to what was asked meanwhile."""
        self._late = not self._found.wait(seconds)

    def _lines(self, told: Told) -> list[str]:
        """Those that nobody has read yet."""
        if self._late:
            return []
        new = _mark(self._settings.home, [*told, self._settled])
        if GREETING not in new:
            return [line for fact in new for line in told.get(fact, ())]
        first, *lines = [line for fact in told if fact != GREETING for line in told[fact]]
        return [f"Welcome. {first}", *lines, *told[GREETING]]

    def _find(self) -> None:
        settings, environ = self._settings, self._environ
        cloud = settings.cloud_configured and not self._local_only
        machine = look(environ)
        model = _model(settings, machine)
        here = cached_snapshot(hub_cache(environ), model) is not None if "/" in model else True
        told = welcome(settings, machine, here=here, offline=is_offline(environ), cloud=cloud)
        self._put(lambda: self._lines(told))
        self._found.set()


def welcome(
    settings: Settings, machine: Machine, *, here: bool, offline: bool, cloud: bool
) -> Told:
    """What there is to know, at most eight lines. Pure.

    Args:
        settings: those in force.
        machine: for what ``auto`` chooses.
        here: the model is on this disk.
        offline: no download may begin.
        cloud: Claude may be asked in this session.
    """
    model = _model(settings, machine)
    lines = [_describe_model(settings, machine)]
    if model and not here:
        lines += _describe_download(settings, model, offline=offline, cloud=cloud)
    use = settings.cloud.use if cloud else "none"
    help_line = "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves."
    return {
        f"{MODEL} {model or settings.model}": lines,
        f"{CLOUD} {use}": _describe_cloud(settings, cloud=cloud),
        GREETING: [help_line],
    }


def _describe_download(
    settings: Settings, model: str, *, offline: bool, cloud: bool
) -> Iterable[str]:
    meanwhile = "Claude answers, a smaller model what is private"
    if not cloud:
        meanwhile = "a smaller model answers"
    if settings.model != AUTO:
        meanwhile = "Claude answers" if cloud else "questions wait"
    known = catalogue_model(model)
    if offline:
        yield f"Until it is here {meanwhile}."  # why it is not is said when it is known
    else:
        size = f" ({describe_size(known.download_bytes)})" if known else ""
        stop = f"`shammah models pull --cancel {model}` stops it."
        yield f"Downloading it{size}; until then {meanwhile}. {stop}"
    if known and not known.permissive:
        yield f"Its licence ({known.licence}) forbids commercial use."
    yield "To change it: `shammah models use 1.5B`, or `starter` for no download."


def _model(settings: Settings, machine: Machine) -> str:
    found = hub_model(
        settings.model,
        machine.memory,
        permissive=settings.permissive,
        gpu_memory=machine.gpu_memory,
    )
    return found or ""


def _describe_model(settings: Settings, machine: Machine) -> str:
    model = _model(settings, machine)
    memory = f"{machine.memory / GIB:.1f} GiB of memory"
    if settings.model != AUTO:
        name = STARTER if settings.model == STARTER else short_name(model or settings.model)
        return f"Your local model is {name}, as you chose."
    if not model:
        return f"{memory} hold no more than the starter, a small local model."
    without_gpu = _model(settings, replace(machine, gpu_memory=0))
    room = memory if model == without_gpu else f"a GPU of {machine.gpu_memory / GIB:.0f} GiB"
    return f"Your local model is {short_name(model)} (for {room})."


def _describe_cloud(settings: Settings, *, cloud: bool) -> list[str]:
    if not settings.cloud.api_key:
        return ["No key for Claude is set: nothing that you write leaves this machine."]
    if not cloud:
        return ["Claude is not asked: nothing that you write leaves this machine."]
    agreed = " if you agree" if settings.cloud.use == "ask" else ""
    cost = "`shammah config set cloud.daily_budget 1` limits that to $1 a day."
    if settings.cloud.daily_budget:
        cost = f"That is limited to {describe_cost(settings.cloud.daily_budget)} a day."
    lines = [
        f"What the local model can't answer goes to Claude{agreed}: it leaves this machine, and "
        f"costs money. {cost}",
        "What you write after `!private` never leaves this machine.",
    ]
    if not agreed:
        lines[1] += " `shammah config set cloud.use ask` asks you each time."
    return lines


def _read(home: Path) -> list[str]:
    try:
        if (home / MARKER).is_fifo():  # it would wait for who writes to it
            return []
        return (home / MARKER).read_text("utf-8", "replace").splitlines()
    except OSError:
        return []


def _mark(home: Path, facts: Iterable[str]) -> list[str]:
    """Remember what is told; those of ``facts`` that were not known. None, if nothing can be
    remembered."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(home / MARKER, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        with open(descriptor, "r+", encoding="utf-8", errors="replace") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            known = file.read().splitlines()
            new = [fact for fact in facts if fact not in known]
            file.write("".join(f"{fact}\n" for fact in new))
    except OSError:
        return []
    return new
