"""The way to a server of the settings, and whether it can be reached."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from shammah.bus.messages import NotAvailable, Ready
from shammah.errors import ShammahError
from shammah.privacy import Rules
from shammah.privacy.ledger import Ledger
from shammah.settings.model import ServerSettings, Settings
from workers.openai.chat_server import ChatServer
from workers.outgoing.passage import Way

WATCH_S = 30.0
"""How often a server that answers is looked at."""

MISSED_S = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Pauses between looks at one that does not; the last one again and again."""


def way_to(name: str, server: ServerSettings, settings: Settings) -> Way | None:
    """The way to ``server``, which is no cloud; ``None``: it is on this machine.

    Nothing is tried again: while one server is waited for, another could answer.
    """
    if server.trust == "local":
        return None
    rules = None if server.takes_private else Rules(settings.privacy, os.path.expanduser("~"))
    return Way(Ledger(settings.home), rules, name, patient=False)


async def watch(
    server: ChatServer, looked_for: asyncio.Event
) -> AsyncIterator[Ready | NotAvailable]:
    """Look at ``server`` for ever, at once where ``looked_for`` is set; yield how it is."""
    missed = 0
    while True:
        looked_for.clear()
        try:
            found: Ready | NotAvailable = await server.find()
        except ShammahError as error:
            found = NotAvailable(error.message, error.hint)
        missed = 0 if isinstance(found, Ready) else missed + 1
        yield found
        pause = MISSED_S[min(missed, len(MISSED_S)) - 1] if missed else WATCH_S
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(looked_for.wait(), pause)
