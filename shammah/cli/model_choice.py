"""Which models are here, and which one is the default: ``shammah models list`` and ``use``."""

from __future__ import annotations

import json
import os
from pathlib import Path

from shammah.bus import codec
from shammah.bus.client import new_request_id
from shammah.bus.messages import NotAvailable
from shammah.bus.transfers import CachedModel, ListModels, ModelList
from shammah.cli.model_commands import download_worker, end_of
from shammah.errors import ExitCode, ShammahError
from shammah.models.catalogue import (
    AUTO,
    CATALOGUE,
    STARTER,
    LocatedModel,
    Machine,
    MissingModel,
    check_model_name,
    hub_model,
    locate_model,
    starter_directory,
)
from shammah.models.machine import look
from shammah.settings.edit import save, with_setting
from shammah.settings.load import load_settings, read_config
from shammah.settings.model import Settings
from shammah.storage.paths import hub_cache
from shammah.terminal.output import echo
from shammah.terminal.wording import describe_amount, describe_size, printable

HEADER = ("", "MODEL", "SIZE", "REVISIONS", "STATE")


def list_models(settings: Settings, *, as_json: bool) -> int:
    """Show what is in the cache, and which model is the default."""
    found = _cached(settings)
    default = default_model(settings, look(os.environ))
    starter = _starter_size()
    if as_json:
        document = {
            **codec.to_document(found),
            "wanted": settings.model,
            "default": default,
            "starter": {"directory": str(starter_directory()), "size": starter},
        }
        print(json.dumps(document, ensure_ascii=False))
        return ExitCode.OK
    rows = [_row(model, default) for model in found.models]
    size = describe_size(starter) if starter else "missing"
    rows.append((_mark(STARTER, default), f"{STARTER} (built in)", size, "", ""))
    _print_table([HEADER, *rows])
    if not found.models:
        echo("No models yet. `shammah models pull 1.5B` fetches one.")
    else:
        echo(f"{describe_size(found.total_size)} in all, what models share counted once.")
    echo(_default_note(settings.model, default, here=any(row[0] for row in rows)))
    return ExitCode.OK


def default_model(settings: Settings, machine: Machine) -> str:
    """The one model that the settings mean on ``machine``; empty: none fits."""
    found = hub_model(
        settings.model,
        machine.memory,
        permissive=settings.permissive,
        gpu_memory=machine.gpu_memory,
    )
    return found or ("" if settings.model == AUTO else settings.model)


def use_model(wanted: str) -> int:
    """Make a model the default by writing it into ``config.toml``.

    Raises:
        ShammahError: no such model, or the file cannot be changed; it is as it was then.
    """
    environ = {name: value for name, value in os.environ.items() if name != "SHAMMAH_MODEL"}
    before = load_settings(environ)
    settings = load_settings(environ, wanted)
    check_model_name(settings.model)
    where = _whereabouts(settings)
    file = settings.home / "config.toml"
    save(file, with_setting(read_config(file), ("model",), settings.model))
    load_settings(environ)
    changed = "still" if before.model == settings.model else "now"
    echo(f"The default model is {changed} {settings.model} ({file}).")
    echo(where)
    if os.environ.get("SHAMMAH_MODEL"):
        echo("But SHAMMAH_MODEL is set in this environment, and wins over it.")
    return ExitCode.OK


# --- where it is --------------------------------------------------------------------------


def _whereabouts(settings: Settings) -> str:
    """Whether the model is on this disk, in one sentence."""
    machine = look(os.environ)
    name = default_model(settings, machine)
    known = None
    if name and name != STARTER and not os.path.isabs(name):
        known = next((one for one in _cached_if_possible(settings) if one.model == name), None)

    def is_whole(snapshot: Path) -> bool:
        return known is not None and known.verified and snapshot.name in known.revisions

    found = locate_model(
        *(settings.model, machine.memory, hub_cache(os.environ), starter_directory()),
        stand_in=False,
        is_whole=is_whole,
        permissive=settings.permissive,
        gpu_memory=machine.gpu_memory,
    )
    automatic = settings.model == AUTO and name
    chosen = f"For this machine's memory that is {name}. " if automatic else ""
    match found:
        case LocatedModel(directory=directory):
            return f"{chosen}It is here: {directory}."
        case MissingModel(present=present):
            return chosen + _describe_missing(name, present is not None, known)
        case NotAvailable(reason, hint):
            return f"{reason} {hint}"


def _describe_missing(name: str, present: bool, known: CachedModel | None) -> str:
    size = next((model.download_bytes for model in CATALOGUE if model.model_id == name), 0)
    if present:
        return "It is here, but not verified: the next start checks it and fetches what is bad."
    if known is not None and known.unfinished:
        here = min(known.unfinished, size) if size else known.unfinished
        amount = describe_amount(here, size) if size else describe_size(here)
        return f"It is not whole yet ({amount} are here): the next start goes on with it."
    return "It is not here: it will be downloaded at the next start" + (
        f", {describe_size(size)}." if size else "."
    )


def _cached(settings: Settings) -> ModelList:
    with download_worker(settings) as peer:
        reply = end_of(peer, ListModels(new_request_id()))
    assert isinstance(reply, ModelList)
    return reply


def _cached_if_possible(settings: Settings) -> tuple[CachedModel, ...]:
    try:
        return _cached(settings).models
    except ShammahError:  # the default can be changed all the same
        return ()


# --- the table ----------------------------------------------------------------------------

_Row = tuple[str, str, str, str, str]


def _row(model: CachedModel, default: str) -> _Row:
    states = ["verified"] if model.verified else []
    if model.unfinished:
        states.append(f"unfinished, {describe_size(model.unfinished)} here")
    revisions = " ".join(revision[:8] for revision in model.revisions) or "-"
    mark = _mark(model.model, default)
    return (
        mark,
        model.model,
        describe_size(model.size),
        revisions,
        "; ".join(states) or "not verified",
    )


def _mark(model: str, default: str) -> str:
    return "*" if model == default else ""


def _print_table(rows: list[_Row]) -> None:
    name, size, revisions = (max(len(row[column]) for row in rows) for column in (1, 2, 3))
    for mark, *cells in rows:
        line = f"{mark:2}{cells[0]:{name}}  {cells[1]:>{size}}  {cells[2]:{revisions}}  {cells[3]}"
        echo(line.rstrip())


def _default_note(wanted: str, default: str, *, here: bool) -> str:
    why = ", chosen by auto for this machine's memory" if wanted == AUTO and default else ""
    if here:
        return f"* is the default{why}."
    if os.path.isabs(default):
        return printable(f"The default is the directory {default}.")
    return printable(f"The default, {default or wanted}{why}, is not here.")


def _starter_size() -> int:
    """Bytes of the starter; 0: it is not installed."""
    try:
        return sum(file.stat().st_size for file in starter_directory().iterdir())
    except OSError:
        return 0
