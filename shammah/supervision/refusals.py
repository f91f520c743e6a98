"""Why a worker that was started with other settings is not replaced: which clients use it, what
differs, and what to do."""

from __future__ import annotations

import shlex

from shammah.bus.messages import ClientInfo, Identity, Welcome
from shammah.bus.transfers import Transfer
from shammah.errors import ShammahError
from shammah.supervision.identity import differing_settings


class WorkerInUseError(ShammahError):
    """Another frontend uses a worker that was started with other settings.

    Args:
        wanted: what was requested.
        welcome: of the running worker.
        program: the client (see `ClientInfo`).
    """

    def __init__(self, wanted: Identity, welcome: Welcome, program: str) -> None:
        running = welcome.identity
        users = ", ".join(map(_describe, welcome.others))
        differing = _differing(wanted, running)
        if running.model != wanted.model:
            what = f"runs {running.model} for {users}; you asked for {wanted.model}"
        else:
            what = f"was started with {_other(differing)} than yours, and is in use by {users}"
        super().__init__(
            "worker_in_use",
            f"The {wanted.role} worker {what}.",
            _advice(wanted, running, differing, program),
        )
        self.welcome = welcome


class WorkerBusyError(ShammahError):
    """A worker that was started with other settings is downloading models."""

    def __init__(
        self, wanted: Identity, running: Identity, transfers: tuple[Transfer, ...]
    ) -> None:
        models = ", ".join(transfer.model for transfer in transfers)
        other = f"you asked for {wanted.model}"
        if running.model == wanted.model:
            other = f"it was started with {_other(_differing(wanted, running))} than yours"
        super().__init__(
            "worker_in_use",
            f"The {wanted.role} worker is fetching {models} from {running.model}; {other}.",
            f"Wait until it is done, or stop it with `shammah stop {wanted.role}` "
            "(partial downloads are kept).",
        )


def _describe(client: ClientInfo) -> str:
    place = f" on {client.terminal}" if client.terminal else ""
    program = "a prompt" if client.program == "repl" else client.program
    return f"{program} (process {client.pid}){place}"


def _differing(wanted: Identity, running: Identity) -> tuple[str, ...]:
    """Return the settings that differ, except those that --model sets; a server's table is one."""
    given = {"model", "licence"} if running.model != "auto" else {"model"}
    by_model = wanted.role == "inference" and wanted.model != running.model  # server:NAME
    names = dict.fromkeys(_table(name) for name in differing_settings(wanted, running))
    return tuple(
        name
        for name in names
        if name not in given and not (by_model and name.startswith("[servers."))
    )


def _table(setting: str) -> str:
    part = setting.split(".")
    return f"[servers.{part[1]}]" if part[0] == "servers" else setting


def _other(names: tuple[str, ...]) -> str:
    return f"another {' and another '.join(names)}" if names else "other settings"


def _advice(wanted: Identity, running: Identity, differing: tuple[str, ...], program: str) -> str:
    role = wanted.role
    if role == "inference" and program == "repl":
        return "/join shares it, /takeover replaces it by yours; or wait until it is free."
    if role == "inference" and running.model != wanted.model and not differing:
        share = f"Use it with --model {shlex.quote(running.model)}"
    elif differing:
        share = f"Use the same {' and '.join(differing)}"
    else:
        share = "Use the same settings"
    kept = " (partial downloads are kept)" if role == "download" else ""
    where = " in another terminal" if program == "repl" else ""
    return (
        f"{share}, stop it with `shammah stop {role}`{where}{kept}, or try again when it is free."
    )
