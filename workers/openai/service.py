"""A server as the local model: found, watched, asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shammah.bus.messages import (
    Done,
    Generate,
    Loading,
    NotAvailable,
    Prefill,
    Provenance,
    Ready,
    Timings,
    Usage,
)
from shammah.settings.model import Settings
from workers.answering import Answering
from workers.openai.chat_server import ChatServer
from workers.openai.watching import watch, way_to
from workers.openai.wire import ENGINE
from workers.service import Outlet

ROLE = "inference"


class ServerService:
    """See `workers.service.Service`. The worker is `Ready` while the server can be reached.

    Args:
        settings: whose ``model`` is ``server:NAME`` or ``server:NAME/MODEL``.
        make: the client of the server.
    """

    def __init__(self, settings: Settings, make: Callable[..., ChatServer] = ChatServer) -> None:
        self._settings = settings
        self._make = make
        self._looked_for = asyncio.Event()
        self._answering = Answering(self._watch, Provenance(ROLE, settings.model, engine=ENGINE))

    def run(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._answering.run(outlet)

    def submit(self, request: Generate | Prefill, client: str = "") -> None:
        if isinstance(request, Prefill):  # what it has computed the server remembers by itself
            origin = Provenance(ROLE, self._settings.model, engine=ENGINE)
            done = Done(request.request_id, "cancelled", Usage(), Timings(), origin)
            self._outlet.reply(done)
        else:
            self._answering.submit(request)

    def cancel(self, request_id: str) -> None:
        self._answering.cancel(request_id)

    def stop(self) -> None:
        self._answering.stop()

    async def _watch(self) -> None:
        settings = self._settings.local_server()
        server = self._make(
            self._settings.server,
            settings,
            role=ROLE,
            most=self._settings.inference.max_new_tokens,
            way=way_to(self._settings.server, settings, self._settings),
            lost=self._looked_for.set,
        )
        self._answering.settle(server)
        self._outlet.publish(Loading(self._settings.model, "connect", 0, 1))
        state: Ready | NotAvailable | None = None
        async for found in watch(server, self._looked_for):
            # Not in mid-answer: a state in which nothing can be answered ends what is in hand.
            if found != state and (isinstance(found, Ready) or not self._answering.active):
                state = found
                self._outlet.publish(found)
