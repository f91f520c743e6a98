"""``shammah egress``: what was sent to the cloud."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import click

from shammah.cli.options import Command, json_option
from shammah.cli.since import since_option
from shammah.errors import ExitCode, UsageError
from shammah.privacy.ledger import NAME, Reader, Sent, Total, day_totals, read_ledger, total_of
from shammah.settings.load import home_directory
from shammah.terminal.output import echo, print_json
from shammah.terminal.text import printable
from shammah.terminal.wording import describe_cached, describe_cost

POLL_S = 0.5
HANGING = " " * 21

_TIME = "%Y-%m-%dT%H:%M:%S"


@click.command(cls=Command)
@since_option(utc=True)
@json_option("One JSON object per line.")
@click.option("--follow", is_flag=True, help="Keep running and show new requests, too.")
@click.option("--verify", is_flag=True, help="Say whether the ledger is as it was written.")
@click.option("--head", metavar="HASH", help="Verify that a line that you have noted is in it.")
def egress(since: float | None, as_json: bool, follow: bool, verify: bool, head: str | None) -> int:
    """Show what was sent to the cloud: when, where and how much.

    Each request is recorded before it is sent, with the length and the SHA-256 of its body but
    without its text. Times and days are UTC. Requests to a Hub are not listed: they contain names
    of models and no text of yours.

    Each line carries the hash of the one before. --verify names the lines that were changed,
    removed, put in or moved since (exit status 1), and prints the hash of the last line. If you
    note it elsewhere, --head proves later that nothing before it was rewritten.

    Examples:
      shammah egress --since 7d           the last week, with daily totals
      shammah egress --follow             each request as it is sent, until Ctrl-C
      shammah egress --json | jq -r .sha256
      shammah egress --verify             whole, or what was done to it
      shammah egress --verify --head 5f0c2e9a
    """
    home = home_directory(os.environ)
    if verify or head is not None:
        from shammah.cli.egress_verify import show_verified

        if follow or since is not None:
            raise UsageError(
                "--verify looks at the whole ledger.", "Leave out --since and --follow."
            )
        return show_verified(home, head, as_json=as_json)
    start = datetime.fromtimestamp(since or 0.0, UTC).strftime(_TIME)
    if follow:
        _follow(home, start, as_json=as_json)
        return ExitCode.OK
    entries, damaged = read_ledger(home)
    entries = [sent for sent in entries if sent.time >= start]
    if as_json:
        for sent in entries:
            _show(sent, as_json=True)
        for total in day_totals(entries):
            print_json({"type": "day", **asdict(total)})
    elif not entries:
        when = "" if since is None else " in this period"
        echo(f"Nothing you wrote has left this machine{when}.")
    else:
        for line in describe_ledger(entries):
            echo(line, hanging=HANGING)
    if damaged:
        lines = "line" if damaged == 1 else "lines"
        echo(
            f"Skipped {damaged} damaged {lines} of {home / NAME}; `shammah egress --verify` says "
            "what became of the ledger.",
            err=True,
        )
    return ExitCode.OK


def describe_ledger(entries: Iterable[Sent]) -> Iterator[str]:
    """Yield a line for each request and one for each day."""
    for day, of_day in groupby(entries, lambda sent: sent.day):
        sent_that_day = list(of_day)
        yield from map(describe_sent, sent_that_day)
        yield f"{day} total: {_describe_total(total_of(day, sent_that_day))}"


def describe_sent(sent: Sent) -> str:
    """``2026-11-24 09:15:02  https://api.anthropic.com/v1/messages  ...``."""
    parts = [
        f"{sent.day} {sent.time[11:19]}",
        f"{sent.scheme}://{sent.host}{sent.path}",
        f"{sent.server}: {sent.model}" if sent.server else sent.model,
        f"{sent.bytes:,} bytes",
        f"sha256 {sent.sha256[:12]}",
        sent.outcome if sent.attempt == 1 else f"{sent.outcome} (attempt {sent.attempt})",
    ]
    if sent.input_tokens or sent.output_tokens:
        parts.append(_describe_tokens(sent))
    if sent.cost is not None:
        parts.append(describe_cost(sent.cost))
    return printable("  ".join(parts))


def _describe_total(total: Total) -> str:
    requests = "1 request" if total.requests == 1 else f"{total.requests:,} requests"
    priced = describe_cost(total.cost)
    if total.unpriced:
        priced += f" and {total.unpriced} of unknown price"
    return f"{requests}, {total.bytes:,} bytes, {_describe_tokens(total)}, {priced}"


def _describe_tokens(used: Sent | Total) -> str:
    cached = describe_cached(used.reused_tokens, used.written_tokens)
    tokens = f"{used.input_tokens:,} + {used.output_tokens:,} tokens"
    return f"{tokens} ({cached})" if cached else tokens


def _show(sent: Sent, *, as_json: bool) -> None:
    if as_json:
        print_json({"type": "request", **asdict(sent)})
    else:
        echo(describe_sent(sent), hanging=HANGING)


def _follow(home: Path, start: str, *, as_json: bool) -> None:
    """Print each request when it is sent, and again when it has ended, until Ctrl-C."""
    reader = Reader(home / NAME)
    while True:
        for sent in reader.read():
            if sent.time >= start:
                _show(sent, as_json=as_json)
        time.sleep(POLL_S)
