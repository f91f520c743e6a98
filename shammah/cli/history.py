"""``shammah history ...``: the command line of `history_command`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

NUMBER = click.IntRange(1, 2**63 - 1)


@click.group(
    "history",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""
    \b
    Examples:
      shammah history list
      shammah history show 12
      shammah history search gpu memory
      shammah history export 12 -o talk.md
      shammah history rm --before 30d
    Nothing is kept with history = "off" in config.toml, SHAMMAH_HISTORY=off, or
    --no-history.
    """,
    short_help="Look for what was said: it is kept on this machine alone.",
)
def history() -> None:
    """What was asked and answered: kept on this machine, and nowhere else."""


@history.command(
    "list",
    epilog="""
    \b
    Examples:
      shammah history list
      shammah history list -n 0 --json | jq -r .title
    """,
)
@click.option(
    "--limit", "-n", type=click.IntRange(0), default=20, show_default=True, help="0: all of them."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def list_(limit: int, as_json: bool) -> int:
    """Show the conversations, newest first."""
    from shammah.cli import history_command

    return history_command.list_conversations(_home(), limit, as_json=as_json)


@history.command(
    epilog="""
    \b
    Examples:
      shammah history show 12
      shammah history show 12 --json | jq -r '.turns[].answer'
    """
)
@click.argument("number", type=NUMBER)
@click.option("--json", "as_json", is_flag=True, help="One object.")
def show(number: int, as_json: bool) -> int:
    """Print conversation NUMBER."""
    from shammah.cli import history_command

    return history_command.show(_home(), number, as_json=as_json)


@history.command(
    epilog="""
    \b
    Examples:
      shammah history search tides             also "tidesman", "floodtides"
      shammah history search '"new york"'      the two words together
      shammah history search --raw 'question: moon NOT sun'
    """,
    short_help="Find the turns that have all WORDS; the best first.",
)
@click.argument("words", nargs=-1, required=True)
@click.option("--raw", is_flag=True, help="WORDS are a query in FTS5's own language.")
@click.option(
    "--limit", "-n", type=click.IntRange(1), default=20, show_default=True, help="So many turns."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def search(words: tuple[str, ...], raw: bool, limit: int, as_json: bool) -> int:
    """Find the turns that have all WORDS, or words that begin so; the best first."""
    from shammah.cli import history_command

    home, text = _home(), " ".join(words)
    return history_command.search(home, text, limit, raw=raw, as_json=as_json)


@history.command(
    epilog="""
    \b
    Examples:
      shammah history export > all.jsonl     every conversation, one a line
      shammah history export 12 -o talk.md   Markdown, to read and to show
      shammah history export 12 -o t.jsonl   everything, for /load t.jsonl
    """
)
@click.argument("numbers", metavar="[NUMBER]...", nargs=-1, type=NUMBER)
@click.option(
    "--format",
    "form",
    type=click.Choice(("jsonl", "markdown")),
    help="Else FILE's name says it; on a terminal markdown, in a pipe jsonl.",
)
@click.option("--output", "-o", metavar="FILE", help="A new file; else standard output.")
def export(numbers: tuple[int, ...], form: str | None, output: str | None) -> int:
    """Write conversations (without NUMBER: all), private turns and all."""
    from shammah.cli import history_command

    return history_command.export(_home(), list(numbers), form, output)


@history.command(
    "rm",
    epilog="""
    \b
    Examples:
      shammah history rm 12 13
      shammah history rm --before 2026-01-01   a date, or 12h, 30d, 8w ago
      shammah history rm --all --yes
    """,
)
@click.argument("numbers", metavar="[NUMBER]...", nargs=-1, type=NUMBER)
@click.option("--before", default="", metavar="WHEN", help="What was last used before then.")
@click.option("--all", "everything", is_flag=True, help="Every conversation.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def remove(numbers: tuple[int, ...], before: str, everything: bool, yes: bool) -> int:
    """Remove conversations, so that their text is in the file no more."""
    from shammah.cli import history_command

    if sum((bool(numbers), bool(before), everything)) != 1:
        raise click.UsageError("Say what: one or more NUMBERs, --before WHEN, or --all.")
    home = _home()
    return history_command.remove(home, list(numbers), before, yes=yes)


def _home() -> Path:
    from shammah.settings.load import home_directory

    return home_directory(os.environ)
