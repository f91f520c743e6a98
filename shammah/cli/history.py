"""``shammah history``: what was said, listed, shown, searched, exported and removed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shammah.cli.options import Group, json_option
from shammah.cli.since import Moment
from shammah.errors import ExitCode, ShammahError, UsageError
from shammah.history import export as exporting
from shammah.history import listing
from shammah.history.record import END_MARK, MARK, StoredConversation
from shammah.history.recorder import HOW_IT_FILLS, NAME, NOTHING
from shammah.settings.load import home_directory
from shammah.storage.kept import erase
from shammah.terminal.confirm import confirm
from shammah.terminal.output import columns_of, echo, print_json, styled
from shammah.terminal.painter import broken
from shammah.terminal.text import fold, printable

if TYPE_CHECKING:
    from shammah.history.store import Store

NUMBER = click.IntRange(1, 2**63 - 1)
BOLD, DIM = "1", "2"

SHOWN = 5
"""Conversations that are listed before they are removed."""


@click.group(cls=Group)
def history() -> None:
    """List, show, search, export and remove conversations. They stay on this machine.

    Examples:
      shammah history list
      shammah history show 12
      shammah history search gpu memory
      shammah history export 12 -o talk.md
      shammah history rm --before 30d
    Nothing is stored with history = "off" in config.toml, SHAMMAH_HISTORY=off, or
    --no-history.
    """


@history.command("list")
@click.option(
    "--limit", "-n", type=click.IntRange(0), default=20, show_default=True, help="0: all of them."
)
@json_option("One JSON object per line.")
def list_(limit: int, as_json: bool) -> int:
    """List the conversations, newest first.

    Examples:
      shammah history list
      shammah history list -n 0 --json | jq -r .title
    """
    with _opened() as store:
        summaries = store.summaries(limit or -1) if store else []
        there = store.count() if store else 0
    columns = _columns()
    for summary in summaries:
        if as_json:
            times = {
                name: exporting.as_time(getattr(summary, name)) for name in ("started", "latest")
            }
            document = {"id": summary.number, **asdict(summary), **times}
            del document["number"]
            print_json(document)
        else:
            _line(listing.describe_summary(summary, columns))
    more = listing.describe_more(len(summaries), there, "`shammah history list -n 0` shows all.")
    if more and not as_json:
        click.echo(more, err=True)
    if not summaries and not as_json:
        echo(f"{NOTHING} {HOW_IT_FILLS}", err=True)
    return ExitCode.OK


@history.command()
@click.argument("number", type=NUMBER)
@json_option("One object.")
def show(number: int, as_json: bool) -> int:
    """Print conversation NUMBER.

    Examples:
      shammah history show 12
      shammah history show 12 --json | jq -r '.turns[].answer'
    """
    with _opened() as store:
        kept = _read(store, number)
    if as_json:
        click.echo(exporting.write_json(kept))
        return ExitCode.OK
    columns = _columns()
    for turn in kept.turns:
        text = "\n".join(listing.describe_turn(turn))
        _line(broken(text, columns) if columns else text)
        said = listing.describe_end(turn)
        _line(_styled(fold(said, columns) if columns else said, DIM) + "\n")
    if not kept.turns:
        echo(f"Conversation {number} is empty.", err=True)
    return ExitCode.OK


@history.command(short_help="Find the turns with all WORDS, best first.")
@click.argument("words", nargs=-1, required=True)
@click.option("--raw", is_flag=True, help="WORDS are an FTS5 query.")
@click.option(
    "--limit", "-n", type=click.IntRange(1), default=20, show_default=True, help="Number of turns."
)
@json_option("One JSON object per line.")
def search(words: tuple[str, ...], raw: bool, limit: int, as_json: bool) -> int:
    """Find the turns with all WORDS, or words that begin with them, best first.

    Examples:
      shammah history search tides             also "tidesman", "floodtides"
      shammah history search '"new york"'      the two words together
      shammah history search --raw 'question: moon NOT sun'
    """
    text = " ".join(words)
    with _opened() as store:
        hits = store.search(text, limit, raw=raw) if store else []
    columns = _columns()
    for hit in hits:
        if as_json:
            snippet = hit.snippet.replace(MARK, "**").replace(END_MARK, "**")
            turn = exporting.turn_document(hit.turn)
            print_json({"id": hit.conversation, "snippet": snippet, **turn})
        else:
            found = listing.describe_hit(hit, lambda found: _styled(found, BOLD))
            _line(fold(found, columns) if columns else found)
    if not hits and not as_json:
        echo("Nothing was found." if store else f"{NOTHING} {HOW_IT_FILLS}", err=True)
    return ExitCode.OK if hits else ExitCode.FAILED


@history.command()
@click.argument("numbers", metavar="[NUMBER]...", nargs=-1, type=NUMBER)
@click.option(
    "--format",
    "form",
    type=click.Choice(("jsonl", "markdown")),
    help="Default: by FILE's name; markdown on a terminal, jsonl in a pipe.",
)
@click.option("--output", "-o", metavar="FILE", help="A new file; default: standard output.")
def export(numbers: tuple[int, ...], form: str | None, output: str | None) -> int:
    """Write conversations (without NUMBER: all), with private turns.

    Examples:
      shammah history export > all.jsonl     every conversation, one a line
      shammah history export 12 -o talk.md   Markdown, to read and share
      shammah history export 12 -o t.jsonl   everything, for /load t.jsonl
    """
    path = Path(output) if output and output != "-" else None
    usual = "markdown" if sys.stdout.isatty() else "jsonl"
    form = form or (exporting.form_of(path) if path else usual)
    with _opened() as store:
        if path is None:
            for kept in _conversations(store, numbers):
                text = exporting.write(kept, form)
                sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
            return ExitCode.OK
        written = (exporting.write(kept, form) for kept in _conversations(store, numbers))
        count = exporting.write_file(path, written, overwrite=False)
    echo(f"{count} conversation{'' if count == 1 else 's'} written to {path}.", err=True)
    return ExitCode.OK


@history.command("rm")
@click.argument("numbers", metavar="[NUMBER]...", nargs=-1, type=NUMBER)
@click.option("--before", type=Moment(), metavar="WHEN", help="Those last used before then.")
@click.option("--all", "everything", is_flag=True, help="Every conversation.")
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
def remove(numbers: tuple[int, ...], before: float | None, everything: bool, yes: bool) -> int:
    """Remove conversations permanently.

    Examples:
      shammah history rm 12 13
      shammah history rm --before 2026-01-01   a date, or 12h, 30d, 8w ago
      shammah history rm --all --yes
    """
    if sum((bool(numbers), before is not None, everything)) != 1:
        raise click.UsageError("Choose one: NUMBERs, --before WHEN, or --all.")
    with _opened() as store:
        if store is None:
            if numbers:
                raise ShammahError("history_unknown", NOTHING, HOW_IT_FILLS)
            echo(NOTHING, err=True)
            return ExitCode.OK
        chosen = _choose(store, numbers, before)
        what = f"{len(chosen)} conversation{'' if len(chosen) == 1 else 's'}"
        if not chosen:
            echo("Nothing to remove.", err=True)
            return ExitCode.OK
        if not yes and not _agree(store, chosen, f"Permanently remove {what}?"):
            echo("Nothing was removed.", err=True)
            return ExitCode.FAILED
        erase(store.path.parent, store.keys(chosen))  # first: nothing else knows the names
        if not store.remove(chosen):
            echo(
                f"{what} removed. Another program is reading: the text stays in "
                f"{store.path}-wal until it ends.",
                err=True,
            )
            return ExitCode.OK
    echo(f"{what} removed.", err=True)
    return ExitCode.OK


def _choose(store: Store, numbers: tuple[int, ...], before: float | None) -> list[int]:
    if numbers:
        return [store.get(number).number for number in dict.fromkeys(numbers)]
    return store.older(before) if before is not None else store.numbers()


def _agree(store: Store, numbers: list[int], question: str) -> bool:
    """Show the newest of the conversations, and ask whether to remove them all.

    Raises:
        ShammahError: ``usage``: there is no terminal to ask on.
    """
    if not sys.stdin.isatty():
        raise UsageError(
            "Nothing was removed: no terminal to confirm on.", "To remove them anyway: --yes."
        )
    summaries = store.summaries(-1)
    doomed = [summary for summary in summaries if summary.number in numbers]
    columns = columns_of(sys.stderr)
    for summary in doomed[:SHOWN]:
        echo(listing.describe_summary(summary, columns), err=True)
    if len(doomed) > SHOWN:
        echo(f"and {len(doomed) - SHOWN:,} more", err=True)
    return confirm(question)


def _conversations(store: Store | None, numbers: tuple[int, ...]) -> Iterator[StoredConversation]:
    if numbers:
        yield from (_read(store, number) for number in numbers)
    elif store is not None:
        for number in store.numbers():
            kept = store.read(number)
            if kept is not None:  # it was removed meanwhile
                yield kept


def _read(store: Store | None, number: int) -> StoredConversation:
    if store is None:
        raise ShammahError("history_unknown", NOTHING, HOW_IT_FILLS)
    return store.get(number)


@contextlib.contextmanager
def _opened() -> Iterator[Store | None]:
    """Open the history; ``None`` if the file does not exist. It is not created."""
    path = home_directory(os.environ) / NAME
    if not path.exists():
        yield None
        return
    from shammah.history.store import Store  # SQLite, which no help needs

    store = Store(path, lambda sentence: echo(sentence, err=True))
    try:
        yield store
    finally:
        store.close()


def _columns() -> int | None:
    """Return the width of the terminal; ``None``: not a terminal."""
    return columns_of(sys.stdout) if sys.stdout.isatty() else None


def _line(text: str) -> None:
    click.echo(text, color=True)


def _styled(text: str, code: str) -> str:
    return styled(text, code, os.environ, terminal=sys.stdout.isatty())
