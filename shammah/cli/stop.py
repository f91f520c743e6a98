"""``shammah stop``: stop workers."""

from __future__ import annotations

import os

import click

from shammah.bus.endpoints import ROLES, open_endpoints
from shammah.cli.options import Command
from shammah.errors import ExitCode
from shammah.terminal.output import echo


@click.command(cls=Command)
@click.argument("role", required=False, type=click.Choice(ROLES))
def stop(role: str | None) -> int:
    """Stop workers now: by request, then SIGTERM, then SIGKILL.

    Examples:
      shammah stop              all workers
      shammah stop inference    only the local model
    """
    from shammah.supervision import lifecycle

    endpoints = open_endpoints(os.environ)
    stopped = False
    for name in [role] if role else ROLES:
        rung = lifecycle.stop(name, endpoints)
        if rung is not None:
            stopped = True
            echo(f"{name}: stopped by {rung}")
    if not stopped:
        echo("No worker is running." if role is None else f"No {role} worker is running.")
    return ExitCode.OK
