"""``shammah models`` as it is declared; the modules that do the work load when it runs."""

from __future__ import annotations

import os

import click

from shammah.cli.options import (
    Group,
    complete_model,
    json_flag,
    json_option,
    licence_option,
    load_checked_settings,
)
from shammah.models.catalogue import STARTER

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
@click.option("--force", is_flag=True, help="Only warn if disk space or memory is too small.")
@json_flag("One object; sizes in bytes.")
def plan(model: str | None, revision: str, licence: str | None, force: bool, as_json: bool) -> int:
    """Show what MODEL needs: download, disk, time and memory. Downloads nothing.

    Examples:
      shammah models plan                      the model that would be used now
      shammah models plan 7B                   a size, a Hub id or a path
      shammah models plan --licence permissive
      shammah models plan 14B --json | jq .memory
    Exit status: 0 it fits (or --force), 1 it doesn't, or the Hub is unreachable.
    """
    from shammah.cli import models_plan

    settings = load_checked_settings(model, licence)
    return models_plan.plan(settings, revision, force=force, as_json=as_json)


@models.command()
@click.argument("names", metavar="MODEL...", nargs=-1, required=True)
@revision_option
@click.option("--update", is_flag=True, help="Check whether the branch has moved.")
@click.option("--force", is_flag=True, help="Start even if disk space or memory is too small.")
@click.option("--pause", "action", flag_value="pause", help="Pause the download.")
@click.option("--resume", "action", flag_value="resume", help="Resume it, as another pull does.")
@click.option("--cancel", "action", flag_value="cancel", help="End it; partial files are kept.")
@json_flag("One object per model, failed or not.")
def pull(
    names: tuple[str, ...],
    revision: str,
    update: bool,
    force: bool,
    action: str | None,
    as_json: bool,
) -> int:
    """Download models and verify every byte. Resumes what was started.

    Examples:
      shammah models pull 3B             continues in the background after Ctrl-C
      shammah models pull 0.5B 1.5B      both at once
      shammah models pull owner/name:FILE.gguf
      shammah models pull starter        the small one that needs no model hub
      shammah models pull --pause 3B     and --resume, --cancel
      HF_ENDPOINT=http://127.0.0.1:8080 shammah models pull owner/name
    """
    from shammah.bus.client import new_request_id
    from shammah.bus.transfers import Fetch
    from shammah.cli import models_plan, models_pull
    from shammah.cli.models_cache import on_hub
    from shammah.settings.load import load_settings

    settings = load_settings(os.environ)
    if STARTER in names:
        if action or len(names) > 1:
            raise click.UsageError("The starter is fetched alone, without options.")
        return models_pull.pull_starter(as_json=as_json)
    wanted = list(dict.fromkeys(on_hub(settings, name) for name in names))
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
    """List the models in the cache, and GGUF files of other programs. Shared files count once.

    Examples:
      shammah models list
      shammah models list --json | jq -r '.models[].model'
    """
    from shammah.cli import models_cache

    return models_cache.show(as_json=as_json)


@models.command()
@model_argument
def use(model: str) -> int:
    """Make MODEL the default, by one line in config.toml.

    Examples:
      shammah models use 3B                    a size, or any Hub id: owner/name
      shammah models use auto                  chosen by this machine's memory
      shammah models use ./my-model            a directory, or a GGUF file
      shammah models use ollama:llama3.2       what another program has downloaded
    """
    from shammah.cli import models_cache

    return models_cache.use(model)


@models.command("rm")
@model_argument
@click.option("--revision", default="", help="Only this revision.")
def remove(model: str, revision: str) -> int:
    """Delete MODEL from the cache.

    Examples:
      shammah models rm 1.5B
      shammah models rm owner/name --revision 0a75738d
    """
    from shammah.cli import models_cache

    return models_cache.remove(model, revision)


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
    Exit status: 0 complete, 1 damaged.
    """
    from shammah.cli import models_cache

    return models_cache.verify(model, revision, hashes=hashes, repair=repair, as_json=as_json)
