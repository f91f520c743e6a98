"""Shell completion: click's own and the prompt's options. Uses no network and no worker."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from shammah.chat.prompt_options import OPTIONS
from shammah.cli.options import declare
from shammah.errors import ExitCode
from shammah.terminal.output import program

SHELLS = ("bash", "zsh", "fish")


@click.command(
    epilog="""
    \b
    To enable it in every new shell:
      bash: echo 'eval "$(shammah completion bash)"' >> ~/.bashrc
      zsh:  echo 'eval "$(shammah completion zsh)"' >> ~/.zshrc
      fish: shammah completion fish > ~/.config/fish/completions/shammah.fish
    """,
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> int:
    """Print the script that completes commands, options, models and settings."""
    from shammah.cli.main import COMPLETION, main

    found = get_completion_class(shell)
    assert found is not None  # click has one for each of `SHELLS`
    click.echo(found(main, {}, program(), COMPLETION).source())
    return ExitCode.OK


def declare_prompt_options(group: click.Group) -> None:
    """Let ``group`` know the options of the bare prompt while a shell asks for completions.

    `shammah.chat.options` parses them without click, and with a command they mean nothing.
    """
    for spellings, _, _ in OPTIONS:
        names, attributes = declare(spellings[0])
        group.params.append(click.Option(names, **attributes))
