"""Which models are on this disk, according to the download worker, and as lines for people."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from shammah.bus.client import Peer, new_request_id
from shammah.bus.messages import NotAvailable
from shammah.bus.transfers import CachedModel, ListModels, ModelList
from shammah.models.catalogue import (
    AUTO,
    STARTER,
    LocatedModel,
    Machine,
    MissingModel,
    hub_model,
    is_of_hub,
    locate_model,
    starter_directory,
)
from shammah.models.gguf_files import HUB, GgufFile, list_gguf
from shammah.settings.model import Settings
from shammah.storage.paths import hub_cache
from shammah.supervision.lifecycle import connect
from shammah.terminal.text import printable
from shammah.terminal.wording import describe_size

HEADER = ("", "MODEL", "SIZE", "ORIGIN", "REVISIONS", "STATE")

_Row = tuple[str, str, str, str, str, str]


def download_worker(settings: Settings) -> closing[Peer]:
    """Connect to the download worker, and start it if needed."""
    return closing(connect(settings, "download", "models", os.environ))


def cached_models(settings: Settings) -> ModelList:
    """What is in the cache.

    Raises:
        ShammahError: the worker cannot say.
    """
    with download_worker(settings) as peer:
        return peer.begin(ListModels(new_request_id())).end(ModelList)


def files_elsewhere() -> list[GgufFile]:
    """Return the models of other programs on this machine."""
    return [file for file in list_gguf(os.environ) if file.origin != HUB]


def default_model(settings: Settings, machine: Machine) -> str:
    """Return the model that the settings mean on ``machine``; empty: none fits."""
    found = hub_model(
        settings.model,
        machine.memory,
        permissive=settings.permissive,
        gpu_memory=machine.gpu_memory,
    )
    return found or ("" if settings.model == AUTO else settings.model)


def find_model(
    settings: Settings,
    environ: Mapping[str, str],
    machine: Machine,
    is_whole: Callable[[Path], bool],
    *,
    fallback: bool = False,
) -> LocatedModel | MissingModel | NotAvailable:
    """Return where the model lies that the settings mean; see `locate_model`."""
    return locate_model(
        settings.model,
        machine.memory,
        hub_cache(environ),
        starter_directory(),
        fallback=fallback,
        is_whole=is_whole,
        permissive=settings.permissive,
        gpu_memory=machine.gpu_memory,
        environ=environ,
    )


def starter_size() -> int:
    """Bytes of the starter; 0: it is not installed."""
    try:
        return sum(file.stat().st_size for file in starter_directory().iterdir())
    except OSError:
        return 0


def describe_models(
    found: ModelList, others: Sequence[GgufFile], wanted: str, default: str
) -> Iterator[str]:
    """Yield a table, and which model ``wanted``, the setting, means: ``default``.

    ``others``: the files of other programs.
    """
    size = starter_size()
    rows = [HEADER, *(_row(model, default) for model in found.models)]
    for file in others:
        amount = describe_size(file.size)
        name = printable(file.name)
        mark = _mark(file.name, default) or _mark(file.name, f"{default}:latest")
        rows.append((mark, name, amount, file.origin, "-", "GGUF"))
    amount = describe_size(size) if size else "missing"
    rows.append((_mark(STARTER, default), STARTER, amount, "built in", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for mark, name, amount, origin, revisions, state in rows:
        line = f"{mark:2}{name:{widths[1]}}  {amount:>{widths[2]}}  {origin:{widths[3]}}  "
        yield f"{line}{revisions:{widths[4]}}  {state}".rstrip()
    if not found.models and not others:
        yield "No models yet. To download one: `shammah models pull 1.5B`."
    if found.models:
        yield f"{describe_size(found.total_size)} in the Hub's cache; shared files count once."
    why = ", chosen by auto for this machine's memory" if wanted == AUTO and default else ""
    if any(row[0] for row in rows):
        yield f"* is the default{why}."
    elif default and not is_of_hub(default):
        yield printable(f"The default is {default}.")
    else:
        yield printable(f"The default, {default or wanted}{why}, is not on this machine.")


def _row(model: CachedModel, default: str) -> _Row:
    states = ["verified"] if model.verified else []
    if model.unfinished:
        states.append(f"incomplete, {describe_size(model.unfinished)}")
    return (
        _mark(model.model, default),
        model.model,
        describe_size(model.size),
        HUB,
        " ".join(revision[:8] for revision in model.revisions) or "-",
        "; ".join(states) or "not verified",
    )


def _mark(model: str, default: str) -> str:
    return "*" if model == default else ""
