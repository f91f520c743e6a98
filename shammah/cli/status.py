"""``shammah status``: the state of every worker, and what happens next."""

from __future__ import annotations

import contextlib
import os
import sys

import click

from shammah.bus.endpoints import ROLES, open_endpoints
from shammah.cli.options import Command, json_option
from shammah.cli.since import since_option
from shammah.errors import ExitCode


@click.command(cls=Command)
@click.option("--once", is_flag=True, help="Print the present states and exit.")
@json_option("One JSON object per line.")
@since_option()
@click.option("--role", "roles", multiple=True, type=click.Choice(ROLES), help="Only this role.")
def status(once: bool, as_json: bool, since: float | None, roles: tuple[str, ...]) -> int:
    """Show the state of the workers, and follow what happens.

    On a terminal, a live view of all workers; in a pipe, with --json or --since, one line per
    event. A worker keeps its last 1,000 events.

    Examples:
      shammah status                 all workers at a glance; Ctrl-C quits
      shammah status --once          present states only
      shammah status --since 10m     past and new events, one per line
      shammah status | tee log       the same in a pipe, from now on
      shammah status --json | jq -c .event.status.state
    """
    from shammah.cli.status_tail import Tail

    endpoints, wanted = open_endpoints(os.environ), roles or ROLES
    tail = Tail(endpoints, wanted, as_json=as_json)
    if once and since is None:
        return tail.once()
    dumb = os.environ.get("TERM", "dumb") == "dumb"
    if not (once or as_json or since is not None or dumb) and sys.stdout.isatty():
        from shammah.cli.status_live import LiveStatus

        return LiveStatus(endpoints, wanted, sys.stdout, os.environ).run()
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(tail):
        if since is not None:
            tail.show_past(since)
        if not once:
            tail.follow()
    return ExitCode.OK
