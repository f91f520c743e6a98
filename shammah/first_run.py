"""What a person is told once, at the first prompt: which model and why, what leaves the machine.

Everything is found out in the background and shown above the line that is being typed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from shammah.config import Settings
from shammah.machine import look
from shammah.models import (
    AUTO,
    GIB,
    STARTER,
    Machine,
    cached_snapshot,
    catalogue_model,
    hub_cache,
    hub_model,
    is_offline,
)
from shammah.wording import describe_size, short_name

MARKER = "welcomed"
"""A file in the home of a person who has read it."""


class FirstRun:
    """The welcome. Nothing, for whom it has been shown to.

    Args:
        settings: those in force.
        environ: where the cache is, and whether the network may be used.
        local_only: Claude is not asked in this session.
        on_found: called from another thread when there is something to `take`.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        *,
        local_only: bool,
        on_found: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._local_only = local_only
        self._on_found = on_found
        self._lines: list[str] = []

    def start(self) -> None:
        """Begin to find out, unless this is no first run."""
        if not (self._settings.home / MARKER).exists():
            threading.Thread(target=self._find, name="first-run", daemon=True).start()

    def take(self) -> list[str]:
        """The lines, once: for this terminal, and for all others of this home."""
        lines, self._lines = self._lines, []
        return lines if lines and _mark(self._settings.home) else []

    def _find(self) -> None:
        settings, environ = self._settings, self._environ
        cloud = settings.cloud_configured and not self._local_only
        machine = look(environ)
        model = _model(settings, machine)
        here = cached_snapshot(hub_cache(environ), model) is not None if "/" in model else True
        self._lines = welcome(
            settings, machine, here=here, offline=is_offline(environ), cloud=cloud
        )
        self._on_found()


def welcome(
    settings: Settings, machine: Machine, *, here: bool, offline: bool, cloud: bool
) -> list[str]:
    """At most five lines. Pure.

    Args:
        settings: those in force.
        machine: for what ``auto`` chooses.
        here: the model is on this disk.
        offline: no download may begin.
        cloud: Claude may be asked in this session.
    """
    lines = [_describe_model(settings, machine)]
    model = _model(settings, machine)
    meanwhile = "Claude answers" if cloud else "a small starter model answers"
    if not cloud and settings.model != AUTO:
        meanwhile = "questions wait"
    if model and not here and offline:
        lines.append(f"Until it is here {meanwhile}.")  # why it is not is said when it is known
    elif model and not here:
        known = catalogue_model(model)
        size = f" ({describe_size(known.download_bytes)})" if known else ""
        lines.append(f"It comes in the background{size}; until then {meanwhile}.")
    lines += _describe_cloud(settings, cloud=cloud)
    lines.append("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.")
    return lines


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
        return f"Welcome. Your local model is {name}, as you chose."
    if not model:
        return f"Welcome. {memory} hold no more than the starter, a small local model."
    without_gpu = _model(settings, replace(machine, gpu_memory=0))
    room = memory if model == without_gpu else f"a GPU of {machine.gpu_memory / GIB:.0f} GiB"
    return f"Welcome. Your local model is {short_name(model)} (for {room})."


def _describe_cloud(settings: Settings, *, cloud: bool) -> list[str]:
    if not settings.cloud.api_key:
        return ["No key for Claude is set: nothing that you write leaves this machine."]
    if not cloud:
        return ["Claude is not asked: nothing that you write leaves this machine."]
    asked = (
        "after you agree" if settings.cloud.use == "ask" else "where the local model is not enough"
    )
    return [
        f"Claude is asked {asked}: that leaves this machine.",
        "What you write after `!private` never does.",
    ]


def _mark(home: Path) -> bool:
    """Remember that it was shown; false if somebody else has, or nothing can be remembered."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(home / MARKER, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError:
        return False
    return True
