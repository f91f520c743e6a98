"""One of the person's servers as the cloud: behind gate, budget and ledger, as Claude is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import httpx2

from shammah.bus.messages import Done, Failed, Generate, Retrying, Token
from shammah.errors import ShammahError
from shammah.privacy import Rules
from shammah.privacy.ledger import Ledger
from shammah.settings.model import Settings
from workers.cloud.budget import Budget
from workers.cloud.models import Model, price_of
from workers.openai.chat_server import ChatServer
from workers.outgoing.passage import Way


class Provider:
    """See `workers.answering.Backend`.

    Args:
        settings: whose ``cloud.provider`` names a server.
        http_client: replaces the real transport.
    """

    def __init__(
        self, settings: Settings, *, http_client: httpx2.AsyncClient | None = None
    ) -> None:
        server, name = settings.provider, settings.cloud.provider
        assert server is not None, "the settings were checked"
        ledger = Ledger(settings.home)
        self._settings = server
        self.budget = Budget(settings, ledger, self.price)
        rules = Rules(settings.privacy, os.path.expanduser("~"))
        self._server = ChatServer(
            name,
            server,
            role="cloud",
            most=settings.cloud.max_tokens,
            way=Way(ledger, rules, name, check_budget=self.budget.check),
            price=self.price,
            http_client=http_client,
        )

    def price(self) -> Model:
        """Of its model, as far as that is known."""
        return price_of(self._settings, self._server.offer)

    async def look(self) -> None:
        """Learn the price from the server, where the settings do not say it."""
        if not self.price().priced:
            with contextlib.suppress(ShammahError):  # not every provider has a list
                await self._server.find()

    async def answer(
        self,
        request: Generate,
        reply: Callable[[Token | Retrying], None],
        arrived_s: float,
        advance: Callable[[], None],
    ) -> Done | Failed:
        return await self._server.answer(request, reply, arrived_s, advance)

    async def close(self) -> None:
        await self._server.close()
