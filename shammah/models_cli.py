"""``shammah models ...``: the command line of what `model_commands` does."""

from __future__ import annotations

import os

import click

from shammah.config import load_settings


@click.group(
    "models",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""
    \b
    Examples:
      shammah models pull 1.5B
      shammah models list
      shammah models verify 1.5B --hashes --repair
      shammah models rm Qwen/Qwen2.5-1.5B-Instruct
    """,
)
def models() -> None:
    """Fetch, list, check and remove models in the Hugging Face cache."""


@models.command(
    epilog="""
    \b
    Examples:
      shammah models pull 3B                   goes on in the background after Ctrl-C
      shammah models pull --pause 3B           and --resume, --cancel
      HF_ENDPOINT=http://127.0.0.1:8080 shammah models pull owner/name
    """
)
@click.argument("model")
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit.")
@click.option("--update", is_flag=True, help="Look whether the branch has moved.")
@click.option("--force", is_flag=True, help="Begin even if the disk looks too small.")
@click.option("--pause", "action", flag_value="pause", help="Pause the download.")
@click.option("--resume", "action", flag_value="resume", help="Go on after a pause.")
@click.option("--cancel", "action", flag_value="cancel", help="End it; what arrived is kept.")
@click.option("--json", "as_json", is_flag=True, help="One object with the directory.")
def pull(
    model: str, revision: str, update: bool, force: bool, action: str | None, as_json: bool
) -> int:
    """Download MODEL (a size or a Hub id) and verify every byte; resumes what was begun."""
    from shammah import model_commands
    from shammah.bus.client import new_request_id
    from shammah.bus.transfers import Fetch

    settings = load_settings(os.environ)
    name = _hub_model(model)
    if action is not None:
        return model_commands.steer(settings, name, action)
    fetch = Fetch(new_request_id(), name, revision, urgent=True, force=force, update=update)
    return model_commands.pull(settings, fetch, as_json=as_json)


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="One object.")
def list_(as_json: bool) -> int:
    """Show the models in the cache, what they share counted once."""
    from shammah import model_commands

    return model_commands.list_models(load_settings(os.environ), as_json=as_json)


@models.command("rm")
@click.argument("model")
@click.option("--revision", default="", help="Only this one.")
def remove(model: str, revision: str) -> int:
    """Delete MODEL from the cache."""
    from shammah import model_commands

    return model_commands.remove_model(load_settings(os.environ), _hub_model(model), revision)


@models.command()
@click.argument("model")
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit.")
@click.option("--hashes", is_flag=True, help="Read every byte, not only the sizes.")
@click.option("--repair", is_flag=True, help="Read every byte and fetch bad files anew.")
@click.option("--json", "as_json", is_flag=True, help="One object.")
def verify(model: str, revision: str, hashes: bool, repair: bool, as_json: bool) -> int:
    """Check the files of MODEL."""
    from shammah import model_commands
    from shammah.bus.client import new_request_id
    from shammah.bus.transfers import VerifyModel

    request = VerifyModel(new_request_id(), _hub_model(model), revision, hashes, repair)
    return model_commands.verify_model(load_settings(os.environ), request, as_json=as_json)


def _hub_model(name: str) -> str:
    """The Hub id that ``name`` means.

    Raises:
        ShammahError: ``model_unknown``; also for what is no model of the Hub.
    """
    from shammah.models import check_hub_id, model_id_of

    check_hub_id(model_id_of(name))
    return model_id_of(name)
