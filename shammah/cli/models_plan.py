"""``shammah models plan``: what a model needs here; a pull checks it first."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict

from shammah.bus.client import Peer, new_request_id
from shammah.bus.transfers import Fetch, FetchPlan, PlanFetch, PlannedFile, Transferring
from shammah.errors import ExitCode, ShammahError
from shammah.models.catalogue import (
    AUTO,
    GIB,
    CatalogueModel,
    Machine,
    catalogue_model,
    check_local,
    is_of_hub,
    local_path,
    no_model,
    starter_directory,
)
from shammah.models.gguf_files import ENDING, part_names
from shammah.models.machine import look
from shammah.settings.model import Settings
from shammah.storage.disk import nearest_existing
from shammah.storage.paths import hub_cache
from shammah.supervision.model_list import default_model, download_worker
from shammah.supervision.plan import MemoryNeed, ModelPlan, Place, make_plan
from shammah.terminal.output import describe_error, echo, print_json
from shammah.terminal.screen import Screen
from shammah.terminal.wording import describe_duration, describe_size

CONFIG = "config.json"


def plan(settings: Settings, revision: str, *, force: bool, as_json: bool) -> int:
    """Show what the model of ``settings`` needs on this machine.

    Raises:
        ShammahError: the model does not exist, the Hub is unreachable, or (unless ``force``) the
            model does not fit.
    """
    screen = Screen(os.environ, sys.stderr)
    machine = look(os.environ)
    name = _chosen(settings, machine)
    screen.live(f"looking up {name} ...")
    try:
        made = make_plan(_found(settings, name, revision, screen), _place(settings, machine))
    finally:
        screen.end_live()
    if as_json:
        print_json(_document(made))
    else:
        automatic = settings.model == AUTO
        echo("\n".join(_lines(made, automatic=automatic)), hanging=" " * 12)
    _judge(made.refusals, screen, force=force)
    return ExitCode.OK


def check_plan(settings: Settings, fetches: list[Fetch], *, as_json: bool) -> None:
    """Refuse all downloads, before the first starts, if one of the models does not fit.

    Downloads that are running are not checked again. If a check fails, the download will fail and
    report it.

    Raises:
        ShammahError: the disk or the memory is too small, and the fetch does not say ``force``.
    """
    screen = Screen(os.environ, sys.stderr)
    place = _place(settings, look(os.environ))
    with download_worker(settings) as peer:
        for fetch in fetches:
            known = catalogue_model(fetch.model)
            if known is not None and not known.permissive:
                screen.hint(
                    f"{known.name} is not licensed for commercial use ({known.licence}). "
                    "--licence permissive skips it."
                )
            if _is_under_way(peer, fetch.model):
                continue
            screen.live(f"looking up {fetch.model} ...")
            request = PlanFetch(
                new_request_id(),
                fetch.model,
                fetch.revision,
                fetch.update,
                config=known is None,  # the catalogue has its shape
            )
            refusals: tuple[ShammahError, ...] = ()
            with contextlib.suppress(ShammahError):
                refusals = make_plan(peer.begin(request).end(FetchPlan), place).refusals
            screen.end_live()
            if refusals and as_json and not fetch.force:
                print_json({"model": fetch.model, "error": describe_error(refusals[0])})
            _judge(refusals, screen, force=fetch.force)


def _place(settings: Settings, machine: Machine) -> Place:
    return Place(machine, settings.inference, permissive=settings.permissive)


def _chosen(settings: Settings, machine: Machine) -> str:
    """Return the model that the settings mean on this machine."""
    name = default_model(settings, machine)
    if not name:
        raise ShammahError(
            "memory_too_small",
            f"{machine.memory / GIB:.1f} GiB of memory is not enough for a local model.",
            "Name a model to see what it needs, or use --model starter, or the cloud.",
        )
    return name


# --- what is to be fetched ----------------------------------------------------------------


def _found(settings: Settings, name: str, revision: str, screen: Screen) -> FetchPlan:
    if not is_of_hub(name):
        return _local(name)
    with download_worker(settings) as peer:
        try:
            return peer.begin(PlanFetch(new_request_id(), name, revision)).end(FetchPlan)
        except ShammahError as error:
            known = catalogue_model(name)
            if known is None or error.code != "hub_unreachable":
                raise
            screen.hint(f"{error.message} These are the catalogue's numbers for a full download.")
            return _catalogued(known)


def _catalogued(known: CatalogueModel) -> FetchPlan:
    size = known.download_bytes
    return FetchPlan("", known.model_id, "", known.licence, size, missing=size, disk_free=_free())


def _is_under_way(peer: Peer, model: str) -> bool:
    state = peer.latest.status.state if peer.latest is not None else None
    return isinstance(state, Transferring) and any(one.model == model for one in state.transfers)


def _local(name: str) -> FetchPlan:
    """Return a plan for a directory or a file: nothing to download.

    Raises:
        ShammahError: ``model_not_found``, or see `check_local`.
    """
    check_local(name, os.environ)
    path = local_path(name, starter_directory(), os.environ)
    try:
        if path.is_file():
            parts = [path.with_name(part) for part in part_names(path.name)]
            # ollama's have no ending.
            sizes = {f"{part.stem}{ENDING}": part.stat().st_size for part in parts}
        else:
            sizes = {file.name: file.stat().st_size for file in sorted(path.iterdir())}
    except OSError as error:
        raise no_model(path, error.strerror or str(error)) from error
    try:
        config = (path / CONFIG).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        config = ""
    files = tuple(PlannedFile(path, size, size) for path, size in sizes.items())
    total = sum(sizes.values())
    return FetchPlan(
        "", name, "", "", total, missing=0, disk_free=_free(), files=files, config=config
    )


def _free() -> int:
    """Bytes on the disk of the cache."""
    return shutil.disk_usage(nearest_existing(hub_cache(os.environ))).free


# --- what is shown ------------------------------------------------------------------------


def _lines(made: ModelPlan, *, automatic: bool) -> Iterator[str]:
    found = made.found
    why = ", chosen for this machine's memory" if automatic else ""
    yield f"model       {found.model}{why}"
    if made.parameters:
        yield f"parameters  {_count(made.parameters)}"
    if found.licence or found.revision:
        yield f"licence     {_licence(found)}"
    if found.revision:
        yield f"revision    {found.revision}"
    files = len(found.files)
    amount = f" in {files} file{'' if files == 1 else 's'}" if files else ""
    yield f"size        {describe_size(found.total)}{amount}"
    if found.missing:
        held = found.total - found.missing
        here = f"; {describe_size(held)} already downloaded" if held else ""
        yield f"download    {describe_size(found.missing)}{here}"
        free, left = describe_size(found.disk_free), describe_size(max(0, made.disk_left))
        yield f"disk        {free} free, {left} after the download"
        yield f"time        {_time(made)}"
    else:
        yield "download    none: it is on this disk"
    if made.memory is None:
        yield f"memory      unknown: {made.memory_unknown}"
    else:
        yield from _memory_lines(made.memory)
    yield f"verdict     {_verdict(made)}"


def _count(parameters: int) -> str:
    if parameters < 1e9:
        return f"{parameters / 1e6:.0f} million"
    return f"{parameters / 1e9:.2f} billion"


def _licence(found: FetchPlan) -> str:
    known = catalogue_model(found.model)
    licence = found.licence or "not named"
    if known is None or known.permissive:
        return licence
    return f"{known.licence}: no commercial use; --licence permissive skips this model"


def _time(made: ModelPlan) -> str:
    if made.eta_s is None:
        return "unknown until the first download"
    rate = f"{made.found.rate / 1e6:.1f} MB/s"
    return f"{describe_duration(made.eta_s)} at {rate}, the last measured rate"


def _memory_lines(memory: MemoryNeed) -> Iterator[str]:
    usable = f"{memory.usable / GIB:.2f} GiB" if memory.usable else "an unknown amount"
    yield f"memory      {usable} for {memory.dtype} on {memory.device}"
    tokens = f"{memory.context_length:,} tokens"
    least = ("at least", memory.least, "with a conversation, whose length is known after the load")
    loaded = (
        ("weights", memory.weights, ""),
        ("libraries", memory.libraries, ""),
        ("loaded", memory.loaded, "before the first question"),
    )
    full = (
        ("context", memory.kv_cache, f"keys and values of {tokens}"),
        ("one step", memory.activations, "on top, at most"),
        ("total", memory.full, f"with {tokens}"),
    )
    for name, size, note in (*loaded, *(full if memory.context_length else (least,))):
        yield f"  {name:9} {size / GIB:7.2f} GiB  {note}".rstrip()


def _verdict(made: ModelPlan) -> str:
    match made.verdict:
        case "fits" if made.memory is None:
            return "the download fits; memory unknown"
        case "fits":
            return "fits"
        case "fits_shorter":
            assert made.memory is not None
            return f"fits with a context of {made.memory.context_fits:,} tokens"
        case "disk_too_small":
            return "does not fit: not enough disk space"
    return "does not fit: not enough memory"


def _document(made: ModelPlan) -> dict[str, object]:
    found, memory = made.found, made.memory
    facts = asdict(found)
    for name in ("request_id", "config"):
        del facts[name]
    return {
        **facts,
        "verdict": made.verdict,
        "held": found.total - found.missing,
        "disk_left": made.disk_left,
        "eta_s": made.eta_s,
        "parameters": made.parameters,
        "memory": memory and {**asdict(memory), "loaded": memory.loaded, "full": memory.full},
        "memory_unknown": made.memory_unknown,
        "refusals": [describe_error(refusal) for refusal in made.refusals],
    }


def _judge(refusals: tuple[ShammahError, ...], screen: Screen, *, force: bool) -> None:
    """Refuse the model, or with ``force`` warn, if it does not fit."""
    for refusal in refusals:
        if not force:
            raise refusal
        screen.hint(f"Warning: {refusal.message}")
