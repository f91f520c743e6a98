"""The servers beside the local model, as one worker: each watched, and asked by its name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shammah.bus.messages import (
    Done,
    Failed,
    Generate,
    Loading,
    Neighbour,
    NotAvailable,
    Provenance,
    Ready,
    Retrying,
    Token,
)
from shammah.settings.model import Settings
from workers.answering import Answering
from workers.openai.chat_server import BESIDE, ChatServer
from workers.openai.watching import watch, way_to
from workers.openai.wire import ENGINE
from workers.service import Outlet


class BesideService:
    """See `workers.service.Service`. Its state names every server, and why one is not reached."""

    def __init__(self, settings: Settings, make: Callable[..., ChatServer] = ChatServer) -> None:
        self._settings = settings
        self._make = make
        self._servers: dict[str, ChatServer] = {}
        self._known: dict[str, Neighbour] = {}
        self._published: Ready | NotAvailable | None = None
        self._answering = Answering(self._watch, Provenance(BESIDE, "", engine=ENGINE))

    def run(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._answering.run(outlet)

    def submit(self, request: Generate, client: str = "") -> None:
        self._answering.submit(request)

    def cancel(self, request_id: str) -> None:
        self._answering.cancel(request_id)

    def stop(self) -> None:
        self._answering.stop()

    # --- in the loop ----------------------------------------------------------------------

    async def answer(
        self,
        request: Generate,
        reply: Callable[[Token | Retrying], None],
        arrived_s: float,
        advance: Callable[[], None],
    ) -> Done | Failed:
        """See `workers.answering.Backend`."""
        server = self._servers.get(request.server)
        if server is None:
            why = f"No server is named {request.server!r:.60}."
            return Failed(
                "server_unknown", why, "See [servers] in config.toml.", request.request_id
            )
        return await server.answer(request, reply, arrived_s, advance)

    async def close(self) -> None:
        for server in self._servers.values():
            await server.close()

    async def _watch(self) -> None:
        beside = self._settings.beside
        names = ", ".join(beside)
        self._outlet.publish(Loading(names, "connect", 0, 1))
        async with asyncio.TaskGroup() as watching:
            for name, settings in beside.items():
                looked_for = asyncio.Event()
                server = self._servers[name] = self._make(
                    name,
                    settings,
                    role=BESIDE,
                    most=self._settings.inference.max_new_tokens,
                    way=way_to(name, settings, self._settings),
                    lost=looked_for.set,
                )
                watching.create_task(self._watch_one(server, looked_for))
            self._answering.settle(self)

    async def _watch_one(self, server: ChatServer, looked_for: asyncio.Event) -> None:
        async for found in watch(server, looked_for):
            if isinstance(found, Ready):
                known = Neighbour(server.name, found.model, found.context_length)
            else:
                known = Neighbour(server.name, why=found.reason)
            self._known[server.name] = known
            if len(self._known) == len(self._servers):
                self._publish()

    def _publish(self) -> None:
        known = tuple(self._known[name] for name in self._servers)
        reached = [one.name for one in known if not one.why]
        state: Ready | NotAvailable = Ready(", ".join(reached), engine=ENGINE, servers=known)
        if not reached:
            why = (
                known[0].why if len(known) == 1 else f"None of {', '.join(self._servers)} is there."
            )
            state = NotAvailable(why, "`shammah doctor` looks at each.")
        # Not in mid-answer: a state in which nothing can be answered ends what is in hand.
        if state != self._published and (reached or not self._answering.active):
            self._published = state
            self._outlet.publish(state)
