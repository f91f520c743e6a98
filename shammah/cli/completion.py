"""Shell completion: click's own, and what click cannot know. Touches no network and no worker."""

from __future__ import annotations

import os

import click
from click.shell_completion import CompletionItem, get_completion_class

from shammah.errors import ExitCode, ShammahError
from shammah.terminal.invocation import program

VARIABLE = "_SHAMMAH_COMPLETE"
"""Set by the script in the shell; `shammah.__main__` looks at it, too."""

SHELLS = ("bash", "zsh", "fish")


def print_script(group: click.Group, shell: str) -> int:
    """Print what makes ``shell`` complete ``shammah``."""
    found = get_completion_class(shell)
    if found is None:
        why = f"There is no completion for {shell}."
        raise ShammahError("usage", why, f"There is for {', '.join(SHELLS)}.")
    click.echo(found(group, {}, program(), VARIABLE).source())
    return ExitCode.OK


def declare_prompt_options(group: click.Group) -> None:
    """Let ``group`` know the options of the bare prompt while a shell asks for completions.

    `shammah.chat.options` parses them without click, and with a command they mean nothing.
    """
    from shammah.chat.options import FLAGS, VALUES
    from shammah.models.licences import LICENCES

    spellings: dict[str, list[str]] = {}
    for spelling, name in VALUES.items():
        spellings.setdefault(name, []).append(spelling)
    for name, spelled in spellings.items():
        kind = click.Choice(LICENCES) if name == "licence" else None
        option = click.Option(spelled, type=kind, help=f"The prompt's {name}.")
        if name == "model":
            option = click.Option(spelled, shell_complete=complete_models, help="Which model.")
        group.params.append(option)
    for flag in FLAGS:
        group.params.append(click.Option([flag], is_flag=True, help="For the prompt."))


def complete_models(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of models: what can be chosen, and what is in the cache."""
    from shammah.models.catalogue import AUTO, CATALOGUE, STARTER
    from shammah.storage.paths import hub_cache

    names = [AUTO, STARTER, *(model.size for model in CATALOGUE)]
    try:
        cached = sorted(os.listdir(hub_cache(os.environ)))
    except OSError:
        cached = []
    names += [
        folder.removeprefix("models--").replace("--", "/")
        for folder in cached
        if folder.startswith("models--")
    ]
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    if incomplete.startswith((".", "/", "~")):
        found.append(CompletionItem(incomplete, type="dir"))
    return found


def complete_settings(incomplete: str) -> list[CompletionItem]:
    """Names of settings."""
    from shammah.settings.model import setting_names

    names = [".".join(path) for path in setting_names()]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
