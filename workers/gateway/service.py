"""The gateway as a service of `workers.host`: one thread, one event loop, uvicorn in it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping

import uvicorn

from shammah.bus.endpoints import open_endpoints
from shammah.bus.messages import Serving
from shammah.settings.model import Settings
from shammah.supervision.gateway_use import describe_use, read_token
from workers.gateway.app import application
from workers.gateway.desk import Desk
from workers.gateway.door import (
    BACKLOG,
    HEADER_BYTES,
    KEEP_ALIVE_S,
    Door,
    address_of,
    open_socket,
)
from workers.service import Outlet


class GatewayService:
    """Serves HTTP until it is stopped. Nothing is asked of it by the bus.

    Args:
        settings: of the person.
        environ: with the secrets that the other workers need.
        show: say on the terminal where it listens, and what to set.

    Raises:
        ShammahError: ``gateway_address``: it cannot listen there; ``gateway_token``.
    """

    def __init__(self, settings: Settings, environ: Mapping[str, str], *, show: bool) -> None:
        self._settings = settings
        self._environ = environ
        self._token = read_token(settings.home)
        self._listener = open_socket(settings.gateway)
        self._address = address_of(self._listener)
        if show:
            seen = self._token if sys.stdout.isatty() else ""
            print(describe_use(self._address, "Ctrl-C stops it.", seen), flush=True)
        self._loop = asyncio.new_event_loop()
        self._stop_asked = asyncio.Event()

    def run(self, outlet: Outlet) -> None:
        """Serve until `stop`."""
        self._loop.run_until_complete(self._serve(outlet))

    def submit(self, request: None, client: str) -> None:
        """Never called: no request of the bus is a gateway's work."""

    def cancel(self, request_id: str) -> None:
        """Never called, either."""

    def stop(self) -> None:
        """End all answers, and make `run` return."""
        with contextlib.suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._stop_asked.set)

    async def _serve(self, outlet: Outlet) -> None:
        def changed(requests: int, waiting: int) -> None:
            outlet.publish(Serving(self._address, requests, waiting))

        desk = Desk(self._settings, self._environ, changed)
        desk.start()
        app = application(self._settings, self._token, desk, open_endpoints(self._environ))
        config = uvicorn.Config(
            app,
            http=Door,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            h11_max_incomplete_event_size=HEADER_BYTES,
        )
        server = uvicorn.Server(config)
        serving = asyncio.ensure_future(server.serve([self._listener]))
        changed(0, 0)
        await self._stop_asked.wait()
        await desk.stop()
        server.should_exit = True
        await serving
        if self._settings.gateway.socket:
            os.unlink(self._address)
