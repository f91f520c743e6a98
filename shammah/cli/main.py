"""The sub-commands. Each imports what it needs when it is called."""

from __future__ import annotations

import math
import os
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from shammah import __version__
from shammah.bus.endpoints import ROLES, open_endpoints
from shammah.cli.config import config
from shammah.cli.history import history
from shammah.cli.models import licence_option, model_option, models
from shammah.cli.train import adapters, train
from shammah.errors import ExitCode, ShammahError
from shammah.settings.environment import mend_streams
from shammah.terminal.invocation import program
from shammah.terminal.output import echo, failing_as_json
from shammah.terminal.printable import printable

if TYPE_CHECKING:
    from shammah.settings.model import Settings

SINCE = "From 90s, 10m, 2h, 7d, 2w ago, 14:30 or 2026-11-24 on."


def run(arguments: list[str]) -> int:
    """Run a command line and return the exit status; never a traceback for what is expected."""
    try:
        mend_streams()  # it writes what is still to be written
        if "_SHAMMAH_COMPLETE" in os.environ:
            from shammah.cli.completion import declare_prompt_options

            declare_prompt_options(main)
        result = main.main(arguments, prog_name=program(), standalone_mode=False)
        sys.stdout.flush()
        return int(result or ExitCode.OK)
    except ShammahError as error:
        echo(f"shammah: {_as_typed(error.message)}", err=True)
        if error.hint:
            echo(error.hint, err=True)
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        said = _as_typed(error.format_message())
        if isinstance(error, click.UsageError) and error.ctx and error.ctx.parent is None:
            from shammah.cli.usage_hints import hint_at

            hint = hint_at(arguments, main.commands).replace("shammah ", f"{program()} ")
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
    """``message`` with bytes that are no UTF-8 as people write them, where it quotes them."""
    return re.sub(r"\\udc([89a-f][0-9a-f])", r"\\x\1", message)


def _forget_output() -> None:
    """Or Python would complain again at exit about what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _finite(
    context: click.Context, parameter: click.Parameter, value: float | None
) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a number.")
    return value


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
      -c, --continue      go on with the newest conversation
      --resume NUMBER     go on with this one (`shammah history list`)
      --no-history        keep nothing of this session
    """


@main.command(
    epilog="""
    \b
    Examples:
      shammah ask "What is the capital of France?"
      cat error.log | shammah ask "What went wrong?" --private
      shammah ask -f main.py -f test_main.py "Why does the test fail?"
      while read f; do shammah ask -n "What is $f?"; done < list
      shammah ask --json --temperature 0 "2+2?" | jq .text
      shammah ask --schema bill.schema.json -f bill.txt "Read it." | jq .total
    Exit status: 0 answered, 1 failed, 2 wrong usage, 130 Ctrl-C, 141 no reader.
    """,
    short_help="Ask one question, with files and what comes through a pipe.",
)
@click.argument("question", required=False)
@click.option(
    "--file",
    "-f",
    "files",
    multiple=True,
    type=click.Path(),
    help="Ask about this text file, too; may be given several times.",
)
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
@click.option("--no-stream", is_flag=True, help="Print the answer when it is complete.")
@click.option("--schema", metavar="FILE", help="Hold Claude's answer to this JSON schema.")
@click.option("--adapter", default="auto", metavar="NAME", help="Local adapter: NAME, off or auto.")
@click.option("--json", "as_json", is_flag=True, help="One object with text and provenance.")
@click.option("-c", "--continue", "newest", is_flag=True, help="Go on with the newest one.")
@click.option("--resume", metavar="NUMBER", help="Go on with this conversation.")
@click.option("--no-history", is_flag=True, help="Keep nothing of it.")
@click.option("-n", "--no-stdin", is_flag=True, help="Leave standard input alone.")
@failing_as_json
def ask(
    question: str | None,
    files: tuple[str, ...],
    model: str | None,
    licence: str | None,
    system: str | None,
    local: bool,
    cloud: bool,
    private: bool,
    temperature: float | None,
    max_tokens: int | None,
    no_stream: bool,
    schema: str | None,
    adapter: str,
    as_json: bool,
    newest: bool,
    resume: str | None,
    no_history: bool,
    no_stdin: bool,
) -> int:
    """Ask one question; files and what comes through a pipe are added to it.

    Standard input is read to its end if it is a pipe, a socket or a file; not if it is a
    terminal, or a file that something else has begun to read, as the list of a `while read` loop.
    Behind a pipe such a loop needs -n, or `</dev/null`. `-f -` reads it whatever it is.
    """
    from shammah.bus.messages import Sampling
    from shammah.chat.options import parse_resume, parse_wish
    from shammah.chat.schema import read_schema
    from shammah.cli import ask as asking
    from shammah.privacy import split_prefix

    if schema is not None and (local or private):
        raise click.UsageError("--schema is enforced by Claude alone; leave out --local.")
    cloud = cloud or schema is not None
    flags = {"--local": local, "--cloud": cloud, "--private": private}
    wish = parse_wish({flag for flag, given in flags.items() if given})
    settings = _settings(model, licence)
    text, sources = asking.read_question(question, files, piped=not no_stdin)
    if not split_prefix(text)[0].strip():
        raise click.UsageError('Nothing was asked. Try: shammah ask "What is a monad?"')
    return asking.ask(
        settings,
        asking.Question(
            text=text,
            system=system,
            wish=replace(wish, adapter=adapter),
            sampling=Sampling(temperature=temperature, schema=read_schema(schema)),
            max_new_tokens=max_tokens,
            as_json=as_json,
            stream=not no_stream,
            sources=sources,
            resume=parse_resume(resume, newest=newest),
            history=not no_history,
        ),
    )


@main.command(
    epilog="""
    \b
    Examples:
      shammah status                 all workers at a glance; Ctrl-C ends
      shammah status --once          present states only
      shammah status --since 10m     what happened and happens, a line an event
      shammah status | tee log       the same in a pipe, from now on
      shammah status --json | jq -c .event.status.state
    """
)
@click.option("--once", is_flag=True, help="Print the present states and end.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.option("--since", default="", metavar="WHEN", help=SINCE)
@click.option("--role", "roles", multiple=True, type=click.Choice(ROLES), help="Only this one.")
def status(once: bool, as_json: bool, since: str, roles: tuple[str, ...]) -> int:
    """Show how the workers are, and follow what happens.

    On a terminal a view of all of them, drawn anew as things happen; in a pipe, with --json or
    --since a line for each event. A worker keeps its last 1,000 events.
    """
    from shammah.cli.status import show_status

    endpoints = open_endpoints(os.environ)
    told: dict[str, bool] = {"once": once, "as_json": as_json}
    return show_status(endpoints, roles, **told, since=since, environ=os.environ)


@main.command(
    epilog="""
    \b
    Examples:
      shammah doctor                       what to paste into a bug report
      shammah doctor --model 7B            how that one would be computed, and why
      shammah doctor --network             can the Hub and Claude be reached?
      shammah doctor --bundle report.zip   with logs and events, no private text
      shammah doctor --json | jq .problems
    Exit status: 0 all is well, 1 something would keep Shammah from answering.
    """,
    short_help="Look at everything: what auto chooses and why, what is wrong.",
)
@model_option
@licence_option
@click.option("--network", is_flag=True, help="Connect to the Hub and to Claude; send nothing.")
@click.option("--bundle", type=click.Path(dir_okay=False), help="Write a zip for a bug report.")
@click.option("--json", "as_json", is_flag=True, help="One object; sizes in bytes.")
def doctor(
    model: str | None, licence: str | None, network: bool, bundle: str | None, as_json: bool
) -> int:
    """Look at everything: what there is, what auto chooses and why, and what is wrong.

    Measures how fast this machine computes, once. Keys and tokens are never shown.
    """
    from shammah.cli.doctor import examine_all

    return examine_all(
        os.environ, model, licence, as_json=as_json, network=network, bundle=bundle or ""
    )


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
    from shammah.supervision.lifecycle import stop as stop_worker

    endpoints = open_endpoints(os.environ)
    stopped = False
    for name in [role] if role else ROLES:
        rung = stop_worker(name, endpoints)
        if rung is not None:
            stopped = True
            echo(f"{name}: stopped by {rung}")
    if not stopped:
        echo("No worker is running." if role is None else f"No {role} worker is running.")
    return ExitCode.OK


@main.command(
    epilog="""
    \b
    Examples:
      shammah worker --role inference --model starter
      shammah worker --role cloud
    It stays until Ctrl-C or `shammah stop`, unless --keep-alive says less.
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
    from shammah.supervision.lifecycle import lend_hub_token, worker_command, worker_spec

    settings = _settings(model, licence)
    if role == "inference":
        client = ClientInfo("worker", os.getpid())
        lend_hub_token(settings, os.environ, open_endpoints(os.environ), client)
    spec = worker_spec(settings, role, os.environ)
    command = [*worker_command(spec), "--foreground", "--keep-alive", str(keep_alive)]
    os.execve(command[0], command, dict(spec.environ))


@main.command(
    epilog="""
    \b
    Examples:
      shammah egress --since 7d           the last week, with totals by day
      shammah egress --follow             each request as it is sent, until Ctrl-C
      shammah egress --json | jq -r .sha256
    """,
    short_help="Show what was sent to the cloud: when, where to, how much.",
)
@click.option("--since", default="", metavar="WHEN", help=SINCE)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.option("--follow", is_flag=True, help="Go on, and show what is sent from now on, too.")
def egress(since: str, as_json: bool, follow: bool) -> int:
    """Show what was sent to the cloud: when, where to, how much of it.

    Each request is written down before it goes out, with the length and the SHA-256 of its body
    but not the text. Times and days are UTC. What the download worker asks of a Hub is not in
    here: it sends names of models and no text of yours.
    """
    from shammah.cli.egress import show_egress
    from shammah.settings.load import home_directory

    return show_egress(home_directory(os.environ), since, as_json=as_json, follow=follow)


@main.command(
    epilog="""
    \b
    To have it in every new shell:
      bash: echo 'eval "$(shammah completion bash)"' >> ~/.bashrc
      zsh:  echo 'eval "$(shammah completion zsh)"' >> ~/.zshrc
      fish: shammah completion fish > ~/.config/fish/completions/shammah.fish
    """,
    short_help="Print the script that completes commands, options and models.",
)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> int:
    """Print the script that completes commands, options, models and settings."""
    from shammah.cli.completion import print_script

    return print_script(main, shell)


main.add_command(models)
main.add_command(train)
main.add_command(adapters)
main.add_command(config)
main.add_command(history)


def _settings(model: str | None, licence: str | None) -> Settings:
    from shammah.models.catalogue import check_model_name
    from shammah.settings.load import load_settings

    settings = load_settings(os.environ, model, licence)
    check_model_name(settings.model)
    return settings
