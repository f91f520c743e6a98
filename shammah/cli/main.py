"""The command line: which commands there are. Each is imported when it is called."""

from __future__ import annotations

import importlib
import os
import re
import sys

import click
from click.shell_completion import CompletionItem

from shammah import __version__
from shammah.chat.prompt_options import FLAGS, VALUES, describe_options
from shammah.cli.options import HELP
from shammah.errors import ExitCode, ShammahError
from shammah.settings.environment import mend_streams
from shammah.terminal.output import echo, program
from shammah.terminal.text import printable

COMMANDS = {
    "adapters": "List, choose, roll back, merge and share adapters.",
    "ask": "Ask one question, with files and piped input.",
    "completion": "Print the script that completes commands, options and models.",
    "config": "Show, check and change the settings.",
    "connect": "Point another program at `shammah serve`, or say what to set there.",
    "doctor": "Check everything: what auto chooses and why, what is wrong.",
    "egress": "Show what was sent to the cloud: when, where and how much.",
    "history": "Search your conversations; they stay on this machine.",
    "models": "Plan, download, list, choose, check and remove models.",
    "serve": "Answer other programs, which speak OpenAI's or Anthropic's API.",
    "status": "Show the state of the workers, and follow what happens.",
    "stop": "Stop workers now: by request, then SIGTERM, then SIGKILL.",
    "train": "Teach the local model from feedback or a file.",
    "worker": "Run one worker in this terminal; frontends find and share it.",
}
"""Each is in the module of its name (`ask` in `ask_command`), under that name."""

COMPLETION = "_SHAMMAH_COMPLETE"
"""Set by the script in the shell; `shammah.__main__` looks at it, too."""

EXAMPLE = 'shammah ask "What is a monad?"'
VALUE_EXAMPLES = {
    "--model": "shammah --model starter",
    "--licence": "shammah --licence permissive",
    "--system": 'shammah --system "Answer in French."',
    "--resume": "shammah --resume 12",
}


class LazyGroup(click.Group):
    """Knows the commands without having imported them."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"shammah.cli.{'ask_command' if name == 'ask' else name}")
        command: click.Command = getattr(module, name)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem]:
        named = [
            CompletionItem(name, help=words)
            for name, words in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return named + click.Command.shell_complete(self, context, incomplete)


def run(arguments: list[str]) -> int:
    """Run a command line and return the exit status; expected failures never show a traceback."""
    try:
        mend_streams()  # it writes what is still to be written
        if COMPLETION in os.environ:
            from shammah.cli.completion import declare_prompt_options

            declare_prompt_options(main)
        result = main.main(
            arguments, prog_name=program(), complete_var=COMPLETION, standalone_mode=False
        )
        sys.stdout.flush()
        return int(result or ExitCode.OK)
    except ShammahError as error:
        echo(f"shammah: {_as_typed(error.message)}", err=True)
        if error.hint:
            echo(error.hint, err=True)
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()  # a help page: there is nothing wrong to be named before it
        return ExitCode.USAGE
    except click.ClickException as error:
        said = _as_typed(error.format_message())
        if isinstance(error, click.UsageError) and error.ctx and error.ctx.parent is None:
            hint = hint_at(arguments).replace("shammah ", f"{program()} ")
            elsewhere = hint and isinstance(error, click.NoSuchOption)
            said = hint if elsewhere else f"{said} {hint}".rstrip()
        context = error.ctx if isinstance(error, click.UsageError) else None
        click.UsageError(printable(said), context).show()  # it may quote the name of a file
        return ExitCode.USAGE
    except (click.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # SystemExit is how click says that nobody reads our output any more.
        _forget_output()
        return ExitCode.BROKEN_PIPE
    except OSError as error:
        _forget_output()
        echo(f"shammah: {error.strerror or error}.", err=True)
        return ExitCode.FAILED


def _as_typed(message: str) -> str:
    """Return ``message`` with quoted bytes that are not UTF-8 as people write them."""
    return re.sub(r"\\udc([89a-f][0-9a-f])", r"\\x\1", message)


def _forget_output() -> None:
    """Drop what could not be written, or Python would complain again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def hint_at(arguments: list[str]) -> str:
    """Return what to add to click's message about a wrong command line; empty: nothing."""
    if not arguments:
        return ""
    first, last = arguments[0], arguments[-1]
    if not first.startswith("-"):
        import difflib

        if first in COMMANDS:
            return ""
        near = difflib.get_close_matches(first, COMMANDS, n=1)
        return f"Did you mean {near[0]!r}?" if near else f"To ask something: {EXAMPLE}"
    if first.partition("=")[0] not in {*VALUES, *FLAGS}:
        return ""
    command = next((one for one in arguments if one in COMMANDS), "")
    if command:
        return f"Options come after the command: shammah {command} {first} ..."
    if last in VALUES:
        return f"{last} needs a value: {VALUE_EXAMPLES[VALUES[last]]}"
    return ""


def run_without_terminal(arguments: list[str]) -> int:
    """Handle the prompt's options where there is no terminal for a prompt: ask what is piped in."""
    if not os.isatty(0):
        return run(["ask", *arguments])
    echo(
        "The prompt needs a terminal for its output. "
        'For a pipe or a file, use `shammah ask "..."`.',
        err=True,
    )
    return ExitCode.USAGE


@click.group(
    cls=LazyGroup,
    context_settings=HELP,
    epilog="Without a command: the interactive prompt.",
    help=f"""
    A local-first assistant for the terminal.

    \b
    shammah                               ask at a prompt
    shammah --model starter --private     nothing leaves this machine
    shammah ask "What is a monad?"        one answer
    git diff | shammah ask "Review this"  about piped input
    shammah status                        what the workers are doing

    \b
    The prompt takes:
{describe_options(indent=4)}
    """,
)
@click.version_option(__version__, message="shammah %(version)s")
def main() -> None:
    pass
