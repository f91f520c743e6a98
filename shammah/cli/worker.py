"""``shammah worker``: one worker in this terminal."""

from __future__ import annotations

import os

import click

from shammah.bus.endpoints import ROLES, open_endpoints
from shammah.cli.options import Command, licence_option, load_checked_settings, model_option


@click.command(cls=Command)
@click.option("--role", required=True, type=click.Choice(ROLES), help="Which worker.")
@model_option
@licence_option
@click.option(
    "--keep-alive",
    type=click.FloatRange(min=-1),
    default=-1.0,
    help="Seconds to stay without a frontend; -1 (the default here): forever.",
)
def worker(role: str, model: str | None, licence: str | None, keep_alive: float) -> None:
    """Run one worker in this terminal; frontends find and share it.

    Examples:
      shammah worker --role inference --model starter
      shammah worker --role cloud
    It runs until Ctrl-C or `shammah stop`, or for as long as --keep-alive says.
    """
    from shammah.bus.messages import ClientInfo
    from shammah.supervision.lifecycle import lend_hub_token, worker_command, worker_spec

    settings = load_checked_settings(model, licence)
    if role == "inference":
        client = ClientInfo("worker", os.getpid())
        lend_hub_token(settings, os.environ, open_endpoints(os.environ), client)
    spec = worker_spec(settings, role, os.environ)
    command = [*worker_command(spec), "--foreground", "--keep-alive", str(keep_alive)]
    os.execve(command[0], command, dict(spec.environ))
