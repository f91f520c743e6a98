"""``shammah status``: how every worker is now, and what happens from now on."""

from __future__ import annotations

import os
import sys

import click

from shammah.bus.endpoints import ROLES, open_endpoints
from shammah.cli.options import Command, json_option
from shammah.cli.since import since_option
from shammah.errors import ExitCode


@click.command(cls=Command)
@click.option("--once", is_flag=True, help="Print the present states and end.")
@json_option("One JSON object per line.")
@since_option()
@click.option("--role", "roles", multiple=True, type=click.Choice(ROLES), help="Only this one.")
def status(once: bool, as_json: bool, since: float | None, roles: tuple[str, ...]) -> int:
    """Show how the workers are, and follow what happens.

    On a terminal a view of all of them, drawn anew as things happen; in a pipe, with --json or
    --since a line for each event. A worker keeps its last 1,000 events.

    Examples:
      shammah status                 all workers at a glance; Ctrl-C ends
      shammah status --once          present states only
      shammah status --since 10m     what happened and happens, a line an event
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
    try:
        if since is not None:
            tail.show_past(since)
        if not once:
            tail.follow()
    except KeyboardInterrupt:
        pass
    finally:
        tail.close()
    return ExitCode.OK
