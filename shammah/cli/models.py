"""``shammah models``: what the cache holds, which model is the default, and what one would take."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import click

from shammah.bus import codec
from shammah.bus.client import new_request_id
from shammah.bus.messages import NotAvailable
from shammah.bus.transfers import CachedModel, Fetch, Removed, RemoveModel, Verified, VerifyModel
from shammah.cli import models_plan, models_pull
from shammah.cli.options import (
    Group,
    complete_model,
    json_flag,
    json_option,
    licence_option,
    load_checked_settings,
)
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
    is_choice,
    locate_model,
    starter_directory,
)
from shammah.models.machine import look
from shammah.settings.edit import save, with_setting
from shammah.settings.load import load_settings, read_config
from shammah.settings.model import Settings
from shammah.storage.paths import hub_cache
from shammah.supervision.model_list import (
    cached_models,
    default_model,
    describe_models,
    download_worker,
    starter_size,
)
from shammah.terminal.output import echo, print_json
from shammah.terminal.screen import Screen
from shammah.terminal.wording import describe_amount, describe_size

model_argument = click.argument("model", shell_complete=complete_model)
revision_option = click.option(
    "--revision", default="main", show_default=True, help="Branch, tag or commit."
)


@click.group(cls=Group)
def models() -> None:
    """Plan, fetch, list, choose, check and remove models in the Hugging Face cache.

    Examples:
      shammah models plan
      shammah models pull 1.5B
      shammah models list
      shammah models use 1.5B
      shammah models verify 1.5B --hashes --repair
      shammah models rm Qwen/Qwen2.5-1.5B-Instruct
    """


@models.command()
@click.argument("model", required=False, shell_complete=complete_model)
@revision_option
@licence_option
@click.option("--force", is_flag=True, help="Only warn if the disk or the memory is too small.")
@json_flag("One object; sizes in bytes.")
def plan(model: str | None, revision: str, licence: str | None, force: bool, as_json: bool) -> int:
    """Show what MODEL would take: download, disk, time and memory. Fetches nothing.

    Examples:
      shammah models plan                      the model that would be used now
      shammah models plan 7B                   a size, a Hub id or a directory
      shammah models plan --licence permissive
      shammah models plan 14B --json | jq .memory
    Exit status: 0 it fits (or --force), 1 it does not, or the Hub is not reached.
    """
    return models_plan.plan(
        load_checked_settings(model, licence), revision, force=force, as_json=as_json
    )


@models.command()
@click.argument("names", metavar="MODEL...", nargs=-1, required=True)
@revision_option
@click.option("--update", is_flag=True, help="Look whether the branch has moved.")
@click.option("--force", is_flag=True, help="Begin even if the disk or the memory is too small.")
@click.option("--pause", "action", flag_value="pause", help="Pause the download.")
@click.option("--resume", "action", flag_value="resume", help="Go on, as another pull does.")
@click.option("--cancel", "action", flag_value="cancel", help="End it; what arrived is kept.")
@json_flag("One object a model, failed or not.")
def pull(
    names: tuple[str, ...],
    revision: str,
    update: bool,
    force: bool,
    action: str | None,
    as_json: bool,
) -> int:
    """Download models and verify every byte; what was begun is resumed.

    Examples:
      shammah models pull 3B             goes on in the background after Ctrl-C
      shammah models pull 0.5B 1.5B      both at once
      shammah models pull --pause 3B     and --resume, --cancel
      HF_ENDPOINT=http://127.0.0.1:8080 shammah models pull owner/name
    """
    settings = load_settings(os.environ)
    wanted = list(dict.fromkeys(map(_hub_model, names)))
    if action is not None:
        return models_pull.steer(settings, wanted, action)
    fetches = [
        Fetch(new_request_id(), model, revision, urgent=True, force=force, update=update)
        for model in wanted
    ]
    models_plan.check_plan(settings, fetches, as_json=as_json)
    return models_pull.pull(settings, fetches, as_json=as_json)


@models.command("list")
@json_option("One object.")
def list_(as_json: bool) -> int:
    """Show the models in the cache, what they share counted once.

    Examples:
      shammah models list
      shammah models list --json | jq -r '.models[].model'
    """
    settings = load_settings(os.environ)
    found = cached_models(settings)
    default = default_model(settings, look(os.environ))
    if as_json:
        document = {
            **codec.to_document(found),
            "wanted": settings.model,
            "default": default,
            "starter": {"directory": str(starter_directory()), "size": starter_size()},
        }
        print_json(document)
        return ExitCode.OK
    for line in describe_models(found, settings.model, default):
        echo(line)
    return ExitCode.OK


@models.command()
@model_argument
def use(model: str) -> int:
    """Make MODEL the default, by one line in config.toml.

    Examples:
      shammah models use 3B                    a size, or any Hub id: owner/name
      shammah models use auto                  chosen by this machine's memory
      shammah models use ./my-model            a directory
    """
    environ = {name: value for name, value in os.environ.items() if name != "SHAMMAH_MODEL"}
    before = load_settings(environ)
    settings = load_settings(environ, model)
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


@models.command("rm")
@model_argument
@click.option("--revision", default="", help="Only this one.")
def remove(model: str, revision: str) -> int:
    """Delete MODEL from the cache.

    Examples:
      shammah models rm 1.5B
      shammah models rm owner/name --revision 0a75738d
    """
    model = _hub_model(model)
    with download_worker(load_settings(os.environ)) as peer:
        reply = peer.begin(RemoveModel(new_request_id(), model, revision)).end(Removed)
    echo(f"{model}: {describe_size(reply.freed)} are free again.")
    return ExitCode.OK


@models.command()
@model_argument
@revision_option
@click.option("--hashes", is_flag=True, help="Read every byte, not only the sizes.")
@click.option("--repair", is_flag=True, help="Read every byte and fetch bad files again.")
@json_option("One object.")
def verify(model: str, revision: str, hashes: bool, repair: bool, as_json: bool) -> int:
    """Check the files of MODEL.

    Examples:
      shammah models verify 1.5B             are all files there?
      shammah models verify 1.5B --hashes    is every byte right?
      shammah models verify 1.5B --repair    fetch what is not
    Exit status: 0 it is whole, 1 it is not.
    """
    request = VerifyModel(new_request_id(), _hub_model(model), revision, hashes, repair)
    screen = Screen(os.environ, sys.stderr)
    screen.live(f"checking {request.model} ...")
    with download_worker(load_settings(os.environ)) as peer:
        reply = peer.begin(request).end(Verified)
    screen.end_live()
    if as_json:
        print_json(codec.to_document(reply))
    else:
        for file in reply.bad:
            echo(f"{file.path}: {file.reason}" + (", repaired" if reply.repaired else ""))
        echo(f"{request.model}: " + ("whole" if reply.repaired or not reply.bad else "damaged"))
    return ExitCode.OK if reply.repaired or not reply.bad else ExitCode.FAILED


def _hub_model(name: str) -> str:
    """The Hub id that ``name`` means on this machine.

    Raises:
        ShammahError: ``model_unknown``, ``model_not_of_the_hub``.
    """
    if name == STARTER or (os.path.isdir(name) and not is_choice(name)):
        what = "The starter" if name == STARTER else f"The directory {name}"
        raise ShammahError(
            "model_not_of_the_hub",
            f"{what} does not come from the Hub: there is nothing to fetch, check or remove.",
            "Name a size (1.5B) or a Hub id (owner/name).",
            exit_code=ExitCode.USAGE,
        )
    settings = replace(load_settings(os.environ), model=name)
    machine = look(os.environ) if name == AUTO else Machine(0)
    model = default_model(settings, machine) or name
    check_hub_id(model)
    return model


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
        settings.model,
        machine.memory,
        hub_cache(os.environ),
        starter_directory(),
        fallback=False,
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


def _cached_if_possible(settings: Settings) -> tuple[CachedModel, ...]:
    try:
        return cached_models(settings).models
    except ShammahError:  # the default can be changed all the same
        return ()
