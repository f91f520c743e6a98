"""``shammah models ...``: the command line of `model_commands` and `model_choice`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from shammah.models.licences import LICENCES

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from shammah.settings.model import Settings

licence_option = click.option(
    "--licence",
    "--license",
    type=click.Choice(LICENCES),
    help="permissive: let auto choose nothing that forbids commercial use.",
)


def _complete_model(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from shammah.cli.completion import complete_models

    return complete_models(context, parameter, incomplete)


model_option = click.option(
    "--model",
    "-m",
    metavar="MODEL",
    help="auto, starter, a size (1.5B), a Hub id or a directory.",
    shell_complete=_complete_model,
)


@click.group(
    "models",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""
    \b
    Examples:
      shammah models plan
      shammah models pull 1.5B
      shammah models list
      shammah models use 1.5B
      shammah models verify 1.5B --hashes --repair
      shammah models rm Qwen/Qwen2.5-1.5B-Instruct
    """,
    short_help="Plan, fetch, list, choose, check and remove models.",
)
def models() -> None:
    """Plan, fetch, list, choose, check and remove models in the Hugging Face cache."""


@models.command(
    epilog="""
    \b
    Examples:
      shammah models plan                      the model that would be used now
      shammah models plan 7B                   a size, a Hub id or a directory
      shammah models plan --licence permissive
      shammah models plan 14B --json | jq .memory
    Exit status: 0 it fits (or --force), 1 it does not, or the Hub is not reached.
    """
)
@click.argument("model", required=False, shell_complete=_complete_model)
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit.")
@licence_option
@click.option("--force", is_flag=True, help="Only warn if the disk or the memory is too small.")
@click.option("--json", "as_json", is_flag=True, help="One object; sizes in bytes.")
def plan(model: str | None, revision: str, licence: str | None, force: bool, as_json: bool) -> int:
    """Show what MODEL would take: download, disk, time and memory. Fetches nothing."""
    from shammah.cli import plan_command
    from shammah.models.catalogue import check_model_name

    settings = _settings(model, licence)
    check_model_name(settings.model)
    return plan_command.plan(settings, revision, force=force, as_json=as_json)


@models.command(
    epilog="""
    \b
    Examples:
      shammah models pull 3B             goes on in the background after Ctrl-C
      shammah models pull 0.5B 1.5B      both at once
      shammah models pull --pause 3B     and --resume, --cancel
      HF_ENDPOINT=http://127.0.0.1:8080 shammah models pull owner/name
    """
)
@click.argument("names", metavar="MODEL...", nargs=-1, required=True)
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit.")
@click.option("--update", is_flag=True, help="Look whether the branch has moved.")
@click.option("--force", is_flag=True, help="Begin even if the disk or the memory is too small.")
@click.option("--pause", "action", flag_value="pause", help="Pause the download.")
@click.option("--resume", "action", flag_value="resume", help="Go on, as another pull does.")
@click.option("--cancel", "action", flag_value="cancel", help="End it; what arrived is kept.")
@click.option("--json", "as_json", is_flag=True, help="One object a model.")
def pull(
    names: tuple[str, ...],
    revision: str,
    update: bool,
    force: bool,
    action: str | None,
    as_json: bool,
) -> int:
    """Download models and verify every byte; what was begun is resumed."""
    from shammah.bus.client import new_request_id
    from shammah.bus.transfers import Fetch
    from shammah.cli import model_commands, plan_command

    settings = _settings()
    wanted = list(dict.fromkeys(map(_hub_model, names)))
    if action is not None:
        return model_commands.steer(settings, wanted, action)
    fetches = [
        Fetch(new_request_id(), model, revision, urgent=True, force=force, update=update)
        for model in wanted
    ]
    plan_command.check_plan(settings, fetches, as_json=as_json)
    return model_commands.pull(settings, fetches, as_json=as_json)


@models.command(
    "list",
    epilog="""
    \b
    Examples:
      shammah models list
      shammah models list --json | jq -r '.models[].model'
    """,
)
@click.option("--json", "as_json", is_flag=True, help="One object.")
def list_(as_json: bool) -> int:
    """Show the models in the cache, what they share counted once."""
    from shammah.cli import model_choice

    return model_choice.list_models(_settings(), as_json=as_json)


@models.command(
    epilog="""
    \b
    Examples:
      shammah models use 3B                    a size, or any Hub id: owner/name
      shammah models use auto                  chosen by this machine's memory
      shammah models use ./my-model            a directory
    """
)
@click.argument("model", shell_complete=_complete_model)
def use(model: str) -> int:
    """Make MODEL the default, by one line in config.toml."""
    from shammah.cli import model_choice

    return model_choice.use_model(model)


@models.command(
    "rm",
    epilog="""
    \b
    Examples:
      shammah models rm 1.5B
      shammah models rm owner/name --revision 0a75738d
    """,
)
@click.argument("model", shell_complete=_complete_model)
@click.option("--revision", default="", help="Only this one.")
def remove(model: str, revision: str) -> int:
    """Delete MODEL from the cache."""
    from shammah.cli import model_commands

    return model_commands.remove_model(_settings(), _hub_model(model), revision)


@models.command(
    epilog="""
    \b
    Examples:
      shammah models verify 1.5B             are all files there?
      shammah models verify 1.5B --hashes    is every byte right?
      shammah models verify 1.5B --repair    fetch what is not
    Exit status: 0 it is whole, 1 it is not.
    """
)
@click.argument("model", shell_complete=_complete_model)
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit.")
@click.option("--hashes", is_flag=True, help="Read every byte, not only the sizes.")
@click.option("--repair", is_flag=True, help="Read every byte and fetch bad files again.")
@click.option("--json", "as_json", is_flag=True, help="One object.")
def verify(model: str, revision: str, hashes: bool, repair: bool, as_json: bool) -> int:
    """Check the files of MODEL."""
    from shammah.bus.client import new_request_id
    from shammah.bus.transfers import VerifyModel
    from shammah.cli import model_commands

    request = VerifyModel(new_request_id(), _hub_model(model), revision, hashes, repair)
    return model_commands.verify_model(_settings(), request, as_json=as_json)


def _hub_model(name: str) -> str:
    """The Hub id that ``name`` means on this machine.

    Raises:
        ShammahError: ``model_unknown``, ``model_not_of_the_hub``.
    """
    from dataclasses import replace

    from shammah.cli.model_choice import default_model
    from shammah.errors import ExitCode, ShammahError
    from shammah.models.catalogue import AUTO, STARTER, Machine, check_hub_id, is_choice
    from shammah.models.machine import look

    if name == STARTER or (os.path.isdir(name) and not is_choice(name)):
        what = "The starter" if name == STARTER else f"The directory {name}"
        raise ShammahError(
            "model_not_of_the_hub",
            f"{what} does not come from the Hub: there is nothing to fetch, check or remove.",
            "Name a size (1.5B) or a Hub id (owner/name).",
            exit_code=ExitCode.USAGE,
        )
    settings = replace(_settings(), model=name)
    machine = look(os.environ) if name == AUTO else Machine(0)
    model = default_model(settings, machine) or name
    check_hub_id(model)
    return model


def _settings(model: str | None = None, licence: str | None = None) -> Settings:
    from shammah.settings.load import load_settings

    return load_settings(os.environ, model, licence)
