"""``shammah models list``, ``use``, ``rm`` and ``verify``: what the Hugging Face cache holds."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from shammah.bus import codec
from shammah.bus.client import new_request_id
from shammah.bus.messages import NotAvailable
from shammah.bus.transfers import CachedModel, Removed, RemoveModel, Verified, VerifyModel
from shammah.errors import ExitCode, ShammahError
from shammah.models.catalogue import (
    AUTO,
    CATALOGUE,
    STARTER,
    LocatedModel,
    Machine,
    MissingModel,
    check_hub_id,
    check_model_name,
    is_of_hub,
    starter_directory,
)
from shammah.models.gguf_files import HUB
from shammah.models.machine import look
from shammah.settings.edit import save, with_setting
from shammah.settings.load import absolute_model, load_settings, read_config
from shammah.settings.model import Settings
from shammah.supervision.model_list import (
    cached_models,
    default_model,
    describe_models,
    download_worker,
    files_elsewhere,
    find_model,
    starter_size,
)
from shammah.terminal.output import echo, print_json
from shammah.terminal.screen import Screen
from shammah.terminal.wording import describe_amount, describe_size


def show(*, as_json: bool) -> int:
    settings = load_settings(os.environ)
    found = cached_models(settings)
    others = files_elsewhere()
    default = default_model(settings, look(os.environ))
    if as_json:
        elsewhere = [
            {"model": one.name, "origin": one.origin, "path": str(one.path), "size": one.size}
            for one in others
        ]
        document = codec.to_document(found)
        document |= {
            "models": [{**model, "origin": HUB} for model in document["models"]],
            "elsewhere": elsewhere,
            "wanted": settings.model,
            "default": default,
            "starter": {"directory": str(starter_directory()), "size": starter_size()},
        }
        print_json(document)
        return ExitCode.OK
    for line in describe_models(found, others, settings.model, default):
        echo(line)
    return ExitCode.OK


def use(model: str) -> int:
    environ = {name: value for name, value in os.environ.items() if name != "SHAMMAH_MODEL"}
    before = load_settings(environ)
    settings = load_settings(environ, model)
    check_model_name(settings.model)
    where = _whereabouts(settings)
    file = settings.home / "config.toml"
    save(file, with_setting(read_config(file), ("model",), settings.model))
    changed = "still" if before.model == settings.model else "now"
    echo(f"The default model is {changed} {settings.model} ({file}).")
    echo(where)
    if os.environ.get("SHAMMAH_MODEL"):
        echo("But SHAMMAH_MODEL is set and overrides it.")
    return ExitCode.OK


def remove(model: str, revision: str) -> int:
    settings = load_settings(os.environ)
    model = on_hub(settings, model)
    with download_worker(settings) as peer:
        reply = peer.begin(RemoveModel(new_request_id(), model, revision)).end(Removed)
    echo(f"{model}: freed {describe_size(reply.freed)}.")
    return ExitCode.OK


def verify(model: str, revision: str, *, hashes: bool, repair: bool, as_json: bool) -> int:
    settings = load_settings(os.environ)
    model = on_hub(settings, model)
    screen = Screen(os.environ, sys.stderr)
    screen.live(f"verifying {model} ...")
    with download_worker(settings) as peer:
        request = VerifyModel(new_request_id(), model, revision, hashes, repair)
        reply = peer.begin(request).end(Verified)
    screen.end_live()
    whole = reply.repaired or not reply.bad
    if as_json:
        print_json(codec.to_document(reply))
    else:
        for file in reply.bad:
            echo(f"{file.path}: {file.reason}" + (", repaired" if reply.repaired else ""))
        echo(f"{model}: " + ("complete" if whole else "damaged"))
    return ExitCode.OK if whole else ExitCode.FAILED


def on_hub(settings: Settings, name: str) -> str:
    """Return the Hub id that ``name`` means on this machine.

    Raises:
        ShammahError: ``model_unknown``, ``model_not_of_the_hub``.
    """
    if os.path.isabs(absolute_model(name)) or not is_of_hub(name):
        what = "The starter" if name == STARTER else name
        raise ShammahError(
            "model_not_of_the_hub",
            f"{what} is not from the Hub, so it can't be downloaded, verified or removed.",
            "Name a size (1.5B) or a Hub id (owner/name or owner/name:FILE.gguf).",
            exit_code=ExitCode.USAGE,
        )
    machine = look(os.environ) if name == AUTO else Machine(0)
    model = default_model(replace(settings, model=name), machine) or name
    check_hub_id(model)
    return model


def _whereabouts(settings: Settings) -> str:
    """Say in one sentence whether the model is on this disk."""
    machine = look(os.environ)
    name = default_model(settings, machine)
    known = None
    if name and is_of_hub(name):
        known = next((one for one in _cached_if_possible(settings) if one.model == name), None)

    def is_whole(package: Path) -> bool:
        return (
            known is not None
            and known.verified
            and not {*package.parts}.isdisjoint(known.revisions)
        )

    found = find_model(settings, os.environ, machine, is_whole)
    automatic = settings.model == AUTO and name
    chosen = f"For this machine's memory, that is {name}. " if automatic else ""
    match found:
        case LocatedModel(directory=directory):
            return f"{chosen}It is in {directory}."
        case MissingModel(present=present):
            return chosen + _describe_missing(name, present is not None, known)
        case NotAvailable(reason, hint):
            return f"{reason} {hint}"


def _describe_missing(name: str, present: bool, known: CachedModel | None) -> str:
    size = next((model.download_bytes for model in CATALOGUE if model.model_id == name), 0)
    if present:
        return "It is not verified yet. The next start verifies it and repairs what is bad."
    if known is not None and known.unfinished:
        here = min(known.unfinished, size) if size else known.unfinished
        amount = describe_amount(here, size) if size else describe_size(here)
        return f"Partly downloaded ({amount}). The next start resumes the download."
    return "The next start downloads it" + (f" ({describe_size(size)})." if size else ".")


def _cached_if_possible(settings: Settings) -> tuple[CachedModel, ...]:
    try:
        return cached_models(settings).models
    except ShammahError:  # the default can be changed all the same
        return ()
