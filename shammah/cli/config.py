"""``shammah config ...``: the command line of `config_command`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from shammah.cli.models import licence_option

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def _complete_name(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from shammah.cli.completion import complete_settings

    return complete_settings(incomplete)


json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")
name_argument = click.argument("name", shell_complete=_complete_name)


@click.group(
    "config",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""
    \b
    Examples:
      shammah config show --changed
      shammah config get cloud.use
      shammah config set cloud.use ask
      shammah config edit
      shammah config validate
    """,
)
def config() -> None:
    """Show, check and change the settings.

    Later wins: defaults, config.toml, environment, command line.
    """


@config.command(
    epilog="""
    \b
    Examples:
      shammah config show                 every setting, and where it comes from
      shammah config show --changed       only what you have set
      shammah config show --json | jq '.[] | select(.origin == "environment")'
    Keys are never shown.
    """
)
@click.option("--changed", is_flag=True, help="Only what is not as it comes.")
@click.option("--model", "-m", metavar="MODEL", help="As if this were given to a command.")
@licence_option
@json_option
def show(changed: bool, model: str | None, licence: str | None, as_json: bool) -> int:
    """Show every setting with its value and where that comes from."""
    from shammah.cli.config_command import show_config

    return show_config(os.environ, model, licence, changed=changed, as_json=as_json)


@config.command(
    epilog="""
    \b
    Examples:
      shammah config validate
      shammah config validate --json | jq -r '.problems[].message'
    Exit status: 0 nothing is wrong, 1 something is.
    """
)
@json_option
def validate(as_json: bool) -> int:
    """Say everything that is wrong with config.toml, with the line."""
    from shammah.cli.config_command import validate_config

    return validate_config(os.environ, as_json=as_json)


@config.command(
    epilog="""
    \b
    Examples:
      shammah config edit
      VISUAL="code --wait" shammah config edit
    """
)
def edit() -> int:
    """Open config.toml in $VISUAL or $EDITOR.

    You edit a copy. It takes the file's place when nothing is wrong with it; otherwise you may
    edit again, and nothing that you wrote is lost.
    """
    from shammah.cli.config_command import edit_config

    return edit_config(os.environ)


@config.command(
    epilog="""
    \b
    Examples:
      cat "$(shammah config path)"
    """
)
def path() -> None:
    """Print where config.toml is, or would be."""
    from shammah.cli.config_command import config_path

    click.echo(config_path(os.environ))


@config.command(
    epilog="""
    \b
    Examples:
      shammah config get cloud.use
      shammah config get privacy.words         of a list each value on a line
    """
)
@name_argument
@json_option
def get(name: str, as_json: bool) -> int:
    """Print the value of one setting."""
    from shammah.cli.config_command import get_setting

    return get_setting(os.environ, name, as_json=as_json)


@config.command(
    "set",
    context_settings={"ignore_unknown_options": True},  # -1 is a value
    epilog="""
    \b
    Examples:
      shammah config set inference.keep_alive 600
      shammah config set privacy.words Alice "Project X"  a list of two texts
      shammah config set privacy.words                    an empty list
      shammah config set cloud.api_key -                  asks, and hides it
    """,
    short_help="Write one setting into config.toml; the others stay.",
)
@name_argument
@click.argument("values", nargs=-1)
def set_(name: str, values: tuple[str, ...]) -> int:
    """Write one setting into config.toml; every other line stays as it is."""
    from shammah.cli.config_command import set_setting

    return set_setting(os.environ, name, values)
