"""The sub-commands. Each imports what it needs when it is called."""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from shammah import __version__
from shammah.bus.endpoints import ROLES, open_endpoints
from shammah.config import Settings, load_settings
from shammah.errors import ExitCode, ShammahError
from shammah.models_cli import licence_option, models

Command = TypeVar("Command", bound=Callable[..., Any])

MODEL_HELP = "auto, starter, a size (1.5B), a Hub id or a directory."


def run(arguments: list[str]) -> int:
    """Run a command line and return the exit status; never a traceback for what is expected."""
    _mend_streams()
    try:
        result = main.main(arguments, prog_name="shammah", standalone_mode=False)
        return int(result or ExitCode.OK)
    except ShammahError as error:
        click.echo(f"shammah: {error.message}", err=True)
        if error.hint:
            click.echo(error.hint, err=True)
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE
    except (click.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except OSError as error:
        # Python would complain again at exit about what could not be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # whoever read us has seen enough
            return ExitCode.OK
        click.echo(f"shammah: {error.strerror or error}.", err=True)
        return ExitCode.FAILED


def _mend_streams() -> None:
    """Have three streams that can be written whatever the text and the locale."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for the whole run
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if mode == "w" else "surrogateescape")


def _finite(
    context: click.Context, parameter: click.Parameter, value: float | None
) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a number.")
    return value


def model_option(command: Command) -> Command:
    return click.option("--model", "-m", metavar="MODEL", help=MODEL_HELP)(command)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Without a command: the interactive prompt.",
)
@click.version_option(__version__, message="shammah %(version)s")
def main() -> None:
    """A local-first assistant for the terminal.

    \b
    shammah                               ask at a prompt
    shammah --model starter --private     nothing leaves this machine
    shammah ask "What is a monad?"        one answer
    git diff | shammah ask "Review this"  about something
    shammah status                        what the workers do

    \b
    The prompt takes:
      -m, --model MODEL   auto, starter, a size (1.5B), a Hub id or a directory
      --licence LICENCE   any, or permissive: nothing that forbids commercial use
      --system TEXT       system prompt
      --local             answer on this machine only
      --cloud             answer by Claude only
      --private           like --local; the question never leaves this machine
    """


@main.command(
    epilog="""
    \b
    Examples:
      shammah ask "What is the capital of France?"
      cat error.log | shammah ask "What went wrong?" --private
      shammah ask --json --temperature 0 "2+2?" | jq .text
    Exit status: 0 answered, 1 failed, 2 wrong usage, 130 Ctrl-C.
    """
)
@click.argument("question", required=False)
@model_option
@licence_option
@click.option("--system", metavar="TEXT", help="System prompt.")
@click.option("--local", is_flag=True, help="Answer on this machine only.")
@click.option("--cloud", is_flag=True, help="Answer by Claude only.")
@click.option("--private", is_flag=True, help="Like --local; the text never leaves this machine.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    callback=_finite,
    help="0: always the likeliest word.",
)
@click.option("--max-tokens", type=click.IntRange(1, 10**6), help="Longest answer, in tokens.")
@click.option("--json", "as_json", is_flag=True, help="One object with text and provenance.")
def ask(
    question: str | None,
    model: str | None,
    licence: str | None,
    system: str | None,
    local: bool,
    cloud: bool,
    private: bool,
    temperature: float | None,
    max_tokens: int | None,
    as_json: bool,
) -> int:
    """Ask one question; what comes through a pipe is added to it."""
    from shammah import ask as asking
    from shammah.bus.messages import Sampling
    from shammah.repl.options import parse_wish

    flags = {"--local": local, "--cloud": cloud, "--private": private}
    wish = parse_wish({flag for flag, given in flags.items() if given})
    settings = _settings(model, licence)
    text = asking.read_question(question)
    if not text:
        raise click.UsageError('Nothing was asked. Try: shammah ask "What is a monad?"')
    return asking.ask(
        settings,
        asking.Question(
            text=text,
            system=settings.system if system is None else system,
            wish=wish,
            sampling=Sampling(temperature=temperature),
            max_new_tokens=max_tokens,
            as_json=as_json,
        ),
    )


@main.command(
    epilog="""
    \b
    Examples:
      shammah status                 present states, then every event; Ctrl-C ends
      shammah status --once          present states only
      shammah status --json | jq -c .event.status.state
    """
)
@click.option("--once", is_flag=True, help="Print the present states and end.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.option("--role", "roles", multiple=True, type=click.Choice(ROLES), help="Only this one.")
def status(once: bool, as_json: bool, roles: tuple[str, ...]) -> int:
    """Show how the workers are, and follow what happens."""
    from shammah.status import show_status

    return show_status(open_endpoints(os.environ), roles, once=once, as_json=as_json)


@main.command(
    epilog="""
    \b
    Examples:
      shammah stop              all workers
      shammah stop inference    only the local model
    """
)
@click.argument("role", required=False, type=click.Choice(ROLES))
def stop(role: str | None) -> int:
    """End the workers now: by request, then SIGTERM, then SIGKILL."""
    from shammah.supervision import stop as stop_worker

    endpoints = open_endpoints(os.environ)
    stopped = False
    for name in [role] if role else ROLES:
        rung = stop_worker(name, endpoints)
        if rung is not None:
            stopped = True
            click.echo(f"{name}: stopped by {rung}")
    if not stopped:
        click.echo("No worker is running." if role is None else f"No {role} worker is running.")
    return ExitCode.OK


@main.command(
    epilog="""
    \b
    Examples:
      shammah worker --role inference --model starter
      shammah worker --role cloud
    A worker started here stays until Ctrl-C or `shammah stop`, unless --keep-alive says less.
    """
)
@click.option("--role", required=True, type=click.Choice(ROLES), help="Which worker.")
@model_option
@licence_option
@click.option(
    "--keep-alive",
    type=click.FloatRange(min=-1),
    default=-1.0,
    help="Seconds to stay without a frontend; -1 (default here): for ever.",
)
def worker(role: str, model: str | None, licence: str | None, keep_alive: float) -> None:
    """Run one worker in this terminal; frontends find and share it."""
    from shammah.bus.messages import ClientInfo
    from shammah.supervision import lend_hub_token, worker_command, worker_spec

    settings = _settings(model, licence)
    if role == "inference":
        client = ClientInfo("worker", os.getpid())
        lend_hub_token(settings, os.environ, open_endpoints(os.environ), client)
    spec = worker_spec(settings, role, os.environ, stand_in=not settings.cloud_configured)
    command = [*worker_command(spec), "--foreground", "--keep-alive", str(keep_alive)]
    os.execve(command[0], command, dict(spec.environ))


main.add_command(models)


def _settings(model: str | None, licence: str | None) -> Settings:
    from shammah.models import check_model_name

    settings = load_settings(os.environ, model, licence)
    check_model_name(settings.model)
    return settings
