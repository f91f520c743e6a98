"""``shammah serve``: the endpoint for other programs."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from shammah.cli.options import Command, licence_option, load_checked_settings, model_option
from shammah.errors import ShammahError, UsageError
from shammah.terminal.output import echo

if TYPE_CHECKING:
    from shammah.settings.model import Settings


@click.command(cls=Command)
@click.option("--port", type=click.IntRange(0, 65535), help="Where to listen; 0: a free port.")
@click.option("--socket", metavar="PATH", help="Listen at this path instead.")
@click.option("--origin", "origins", multiple=True, metavar="URL", help="A web page that may ask.")
@click.option("--background", is_flag=True, help="Go on without this terminal.")
@click.option("--token", is_flag=True, help="Print the token that other programs need.")
@click.option(
    "--unit",
    is_flag=False,
    flag_value="launchd" if sys.platform == "darwin" else "systemd",
    type=click.Choice(["systemd", "launchd"]),
    help="Print the unit that starts it whenever you are logged in.",
)
@model_option
@licence_option
def serve(
    port: int | None,
    socket: str | None,
    origins: tuple[str, ...],
    background: bool,
    token: bool,
    unit: str | None,
    model: str | None,
    licence: str | None,
) -> None:
    """Answer other programs, which speak OpenAI's or Anthropic's API.

    Privacy rules, router, history, ledger and budget are the same as at the prompt. It listens on
    this machine alone, and every request needs the token. In a browser there is a page.

    Examples:
      shammah serve                      until Ctrl-C
      shammah serve --background         until `shammah stop gateway`
      shammah serve --socket ~/sh.sock   no port at all
      shammah serve --unit > ~/.config/systemd/user/shammah.service
    """
    from shammah.supervision.gateway_use import describe_unit, read_token
    from shammah.supervision.lifecycle import worker_command, worker_spec

    settings = load_checked_settings(model, licence)
    own = settings.gateway
    own = replace(own, port=own.port if port is None else port, origins=own.origins + origins)
    if port is not None or socket is not None:
        own = replace(own, socket=os.path.abspath(os.path.expanduser(socket)) if socket else "")
    settings = replace(settings, gateway=own)
    if not own.socket and urlsplit(settings.cloud.base_url).netloc in _names(own.port):
        why = "Claude's address (ANTHROPIC_BASE_URL) is this endpoint itself."
        raise UsageError(why, "Unset it here, and set it only where other programs run.")
    if token:
        echo(read_token(settings.home))
    elif unit:
        words = [sys.executable, "-P", "-m", "shammah", "serve", *_words(settings)]
        print(describe_unit(unit, words, {"SHAMMAH_HOME": str(settings.home)}), end="")
    elif background:
        _start(settings)
    else:
        spec = worker_spec(settings, "gateway", os.environ)
        command = [*worker_command(spec), "--foreground"]
        os.execve(command[0], command, dict(spec.environ))


def _names(port: int) -> tuple[str, ...]:
    return tuple(f"{host}:{port}" for host in ("127.0.0.1", "localhost", "[::1]"))


def _words(settings: Settings) -> list[str]:
    """The options that a unit needs."""
    own = settings.gateway
    where = ["--socket", own.socket] if own.socket else ["--port", str(own.port)]
    origins = [word for origin in own.origins for word in ("--origin", origin)]
    return [*where, *origins, "--model", settings.model, "--licence", settings.licence]


def _start(settings: Settings) -> None:
    """Start it, and say where it listens once it does.

    Raises:
        ShammahError: as `shammah.supervision.lifecycle.ensure`, or ``worker_silent``.
    """
    import threading

    from shammah.bus.endpoints import open_endpoints
    from shammah.bus.messages import ClientInfo, Event, Serving
    from shammah.supervision import lifecycle
    from shammah.supervision.gateway_use import describe_use, read_token

    listens = threading.Event()

    def look(event: Event | None) -> None:
        if event is not None and isinstance(event.status.state, Serving):
            listens.set()

    spec = lifecycle.worker_spec(settings, "gateway", os.environ)
    client = ClientInfo("serve", os.getpid())
    peer = lifecycle.ensure(spec, open_endpoints(os.environ), client, on_change=look)
    try:
        listens.wait(lifecycle.START_S)
        state = peer.latest.status.state if peer.latest is not None else None
        if not isinstance(state, Serving):
            what = "The gateway worker was started, but does not listen."
            raise ShammahError("worker_silent", what, f"Its log: {spec.log_file}.")
        seen = read_token(settings.home) if sys.stdout.isatty() else ""
        echo(describe_use(state.address, "`shammah stop gateway` stops it.", seen))
    finally:
        peer.close()
