"""Answers from the Messages API, through the SDK."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anthropic
import httpx2
from anthropic.types import OutputConfigParam, RawMessageStreamEvent

from shammah.bus.messages import Done, Failed, Generate, Retrying, Token
from shammah.privacy import Rules
from shammah.privacy.ledger import Ledger
from shammah.settings.model import Settings
from workers.cloud import failures, transport
from workers.cloud.budget import Budget
from workers.cloud.question import Question
from workers.cloud.reading import MalformedStreamError, Reading
from workers.cloud.request import Call, Peer

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
"""Between two bytes. The API sends pings while it thinks."""

DRAIN_S = 1.0
"""After the answer is complete, the end of the stream is awaited only this long: it lets the
connection be used again, and nothing else comes."""

_QUIET = ("anthropic", "httpx2", "httpcore2")
"""Their debug lines hold requests and headers, and ANTHROPIC_LOG can turn them on."""

_FAILURES = (
    anthropic.APIError,
    httpx2.HTTPError,
    json.JSONDecodeError,
    UnicodeDecodeError,
    MalformedStreamError,
)
"""Once the stream has begun, the SDK lets the errors of its transport and decoder through."""

Take = Callable[[RawMessageStreamEvent], None]


class Claude:
    """One client of one server. Any number of answers at a time, all in one event loop.

    Args:
        settings: of the person; ``home`` is where the ledger is.
        http_client: replaces the real transport.
        clock: monotonic seconds.
        wall: seconds since 1970.
        sleep: waits so many seconds between two attempts.
        chance: a number from 0 to 1, for those waits.

    Raises:
        ShammahError: ``cloud_address_invalid``.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        http_client: httpx2.AsyncClient | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        for name in _QUIET:
            logging.getLogger(name).setLevel(logging.WARNING)
        self.settings = settings.cloud
        self.peer = Peer.of(settings.cloud.base_url)
        self.rules = Rules(settings.privacy, os.path.expanduser("~"))
        self.ledger = Ledger(settings.home, wall)
        self.budget = Budget(settings.cloud, self.ledger)
        self.clock = clock
        self.sleep = sleep
        self.chance = chance
        # Key and address are always given: the SDK would otherwise look into the environment
        # and into profiles on disk, and send questions on behalf of somebody else.
        timeout = httpx2.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, pool=CONNECT_TIMEOUT_S)
        client = http_client or transport.http_client(timeout)
        transport.watch(client)
        self._client = anthropic.AsyncAnthropic(
            api_key=settings.cloud.api_key.strip(),
            base_url=self.peer.url,
            max_retries=0,
            timeout=timeout,
            open_telemetry=False,
            http_client=client,
        )

    async def answer(
        self,
        request: Generate,
        reply: Callable[[Token | Retrying], None],
        arrived_s: float,
        advance: Callable[[], None] = lambda: None,
    ) -> Done | Failed:
        """Answer ``request``, which arrived at ``arrived_s`` on the clock.

        Every piece of text goes to ``reply`` as it comes, and so does what is waited for;
        ``advance`` is called for everything else that comes. Cancelling the task closes the
        connection and returns ``Done(finish_reason="cancelled")``.
        """
        return await Question(self, request, reply, arrived_s, advance).answer()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def read(
        self, call: Call, exchange: transport.Exchange, reading: Reading, take: Take
    ) -> None:
        """Send ``call`` as ``exchange`` and read the stream to its end.

        Raises:
            ShammahError: with a code of `failures`, or the exchange's refusal.
        """
        transport.EXCHANGE.set(exchange)
        try:
            await self._stream(call, reading, take)
        except (*_FAILURES, TimeoutError) as error:
            if exchange.refusal is not None:
                raise exchange.refusal from error
            # What breaks after a complete answer is only the connection.
            if reading.stop_reason is None:
                began = reading.began
                raise failures.describe(error, self.settings, self.peer, began=began) from error
        if reading.stop_reason is None:
            if reading.began:
                raise failures.truncated(self.peer)
            raise failures.malformed(self.peer)

    async def _stream(self, call: Call, reading: Reading, take: Take) -> None:
        # Always as a stream: nothing is held back, and the API wants it for long answers.
        stream = await self._client.messages.create(
            model=call.model,
            max_tokens=call.max_tokens,
            messages=call.turns,
            system=call.system or anthropic.omit,
            stop_sequences=list(call.stop) or anthropic.omit,
            output_config=_held_to(call.schema),
            extra_body=call.extra_body or None,
            stream=True,
        )
        async with stream, asyncio.timeout(None) as limit:
            async for event in stream:
                take(event)
                if reading.stop_reason is not None and limit.when() is None:
                    limit.reschedule(asyncio.get_running_loop().time() + DRAIN_S)


def _held_to(schema: dict[str, Any] | None) -> OutputConfigParam | anthropic.Omit:
    if schema is None:
        return anthropic.omit
    return {"format": {"type": "json_schema", "schema": schema}}
