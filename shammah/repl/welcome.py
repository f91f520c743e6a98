"""The welcome at the first prompt: which model and why, what leaves the machine, and what that
costs. What has changed since is shown at the next prompt.

All of it is found out in the background, and shown above the line that is being typed.
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
from shammah.storage.files import open_file
from shammah.storage.paths import hub_cache
from shammah.terminal.wording import describe_cost, describe_size, short_name

MARKER = "welcomed"
"""A file in the home with the facts that the person has read, one a line."""

GREETING, MODEL, CLOUD = "greeting", "model", "cloud"

Facts = dict[str, list[str]]
"""The lines of each fact. A fact whose name has changed is shown again."""


class FirstRun:
    """The welcome, once for all terminals of a home.

    Args:
        settings: those in force.
        environ: where the cache is, and whether the network may be used.
        local_only: the cloud is off in this session.
        put: given a function that makes the lines when they can be shown.
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
        """Begin to find out, which takes a while, unless these settings were shown before."""
        if self._settled in _read(self._settings.home):
            self._found.set()
            return
        threading.Thread(target=self._find, name="first-run", daemon=True).start()

    def settle(self, seconds: float) -> None:
        """Wait until all is found out. What takes longer is not shown: it would come after the
        answer to what was asked meanwhile."""
        self._late = not self._found.wait(seconds)

    def _lines(self, facts: Facts) -> list[str]:
        """The lines that nobody has read yet."""
        new = [] if self._late else _mark(self._settings.home, [*facts, self._settled])
        lines = [line for fact in facts if fact in new for line in facts[fact]]
        if GREETING in new:
            lines[0] = f"Welcome. {lines[0]}"
        return lines

    def _find(self) -> None:
        settings, environ = self._settings, self._environ
        cloud = settings.cloud_configured and not self._local_only
        machine = look(environ)
        model = _model(settings, machine)
        here = "/" not in model or cached_snapshot(hub_cache(environ), model) is not None
        facts = welcome(settings, machine, here=here, offline=is_offline(environ), cloud=cloud)
        self._put(lambda: self._lines(facts))
        self._found.set()


def welcome(
    settings: Settings, machine: Machine, *, here: bool, offline: bool, cloud: bool
) -> Facts:
    """Return what there is to know, in at most eight lines. Pure.

    Args:
        settings: those in force.
        machine: for what ``auto`` chooses.
        here: the model is on this disk.
        offline: no download may begin.
        cloud: the cloud may be asked in this session.
    """
    model = _model(settings, machine)
    lines = [_describe_model(settings, machine)]
    if model and not here:
        lines += _describe_download(settings, model, offline=offline, cloud=cloud)
    return {
        f"{MODEL} {model or settings.model}": lines,
        f"{CLOUD} {settings.cloud.use if cloud else 'none'}": _describe_cloud(
            settings, cloud=cloud
        ),
        GREETING: ["/help lists the commands, Ctrl-C stops an answer, Ctrl-D exits."],
    }


def _describe_download(
    settings: Settings, model: str, *, offline: bool, cloud: bool
) -> Iterable[str]:
    who = settings.cloud_name
    if settings.model != AUTO:
        meanwhile = f"{who} answers" if cloud else "questions wait"
    else:
        meanwhile = "a smaller model answers"
        if cloud:
            meanwhile = f"{who} answers, or a smaller model if private"
    known = catalogue_model(model)
    if offline:
        yield f"Until it is downloaded, {meanwhile}."  # another notice says why it is not
    else:
        size = f" ({describe_size(known.download_bytes)})" if known else ""
        yield (
            f"Downloading it{size}. Until it's done, {meanwhile}. "
            f"To stop: `shammah models pull --cancel {model}`."
        )
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
        return f"Your local model is the small starter: {memory} is too little for another."
    without_gpu = _model(settings, replace(machine, gpu_memory=0))
    room = memory if model == without_gpu else f"a GPU of {machine.gpu_memory / GIB:.0f} GiB"
    return f"Your local model is {short_name(model)} (for {room})."


def _describe_cloud(settings: Settings, *, cloud: bool) -> list[str]:
    away = [n for n, one in settings.servers.items() if one.trust == "trusted" and one.base_url]
    leaves = "nothing you write leaves this machine"
    if away:
        leaves = f"what you write leaves this machine only for {', '.join(away)}"
    who = settings.cloud_name
    if settings.provider is None and not settings.cloud.api_key:
        return [f"No API key for Claude is set, so {leaves}."]
    if not cloud:
        return [f"{who} is switched off, so {leaves}."]
    asks = settings.cloud.use == "ask"
    limit = "To limit that to $1 a day: `shammah config set cloud.daily_budget 1`."
    if settings.cloud.daily_budget:
        limit = f"Your limit is {describe_cost(settings.cloud.daily_budget)} a day."
    private = "What you write after `!private` never leaves this machine."
    if names := ", ".join(name for name in away if settings.servers[name].private):
        private = f"What you write after `!private` goes to no other machine than {names}."
    return [
        f"Harder questions go to {who}{' if you agree' if asks else ''}: "
        f"they leave this machine and cost money. {limit}",
        private
        if asks
        else f"{private} To be asked each time: `shammah config set cloud.use ask`.",
    ]


def _read(home: Path) -> list[str]:
    try:
        with open_file(home / MARKER) as file:
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def _mark(home: Path, facts: Iterable[str]) -> list[str]:
    """Remember ``facts``; return those that are new, or none if nothing can be remembered."""
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
