"""Answers from the Messages API, through the SDK."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable

import anthropic
import httpx2
from anthropic.types import RawMessageStreamEvent

from shammah.bus.messages import Done, Failed, Generate, Provenance, Token
from shammah.config import CloudSettings
from shammah.errors import ShammahError
from workers.cloud import failures, transport
from workers.cloud.reading import MalformedStreamError, Reading
from workers.cloud.request import Call, Peer, build_call

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
    """One client of one server. Any number of answers at a time, all in one event loop."""

    def __init__(
        self,
        settings: CloudSettings,
        *,
        http_client: httpx2.AsyncClient | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``http_client`` replaces the real transport; ``clock`` gives monotonic seconds.

        Raises:
            ShammahError: ``cloud_address_invalid``.
        """
        for name in _QUIET:
            logging.getLogger(name).setLevel(logging.WARNING)
        self._settings = settings
        self._clock = clock
        self._peer = Peer.of(settings.base_url)
        # Key and address are always given: the SDK would otherwise look into the environment
        # and into profiles on disk, and send questions on behalf of somebody else.
        timeout = httpx2.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, pool=CONNECT_TIMEOUT_S)
        self._client = anthropic.AsyncAnthropic(
            api_key=settings.api_key.strip(),
            base_url=self._peer.url,
            max_retries=0,
            timeout=timeout,
            open_telemetry=False,
            http_client=http_client or transport.http_client(timeout),
        )

    async def answer(
        self,
        request: Generate,
        emit: Callable[[Token], None],
        arrived_s: float,
        advance: Callable[[], None] = lambda: None,
    ) -> Done | Failed:
        """Answer ``request``, which arrived at ``arrived_s`` on the clock.

        Every piece of text goes to ``emit`` as it comes; ``advance`` is called for what comes
        and is no text. Cancelling the task closes the connection and returns
        ``Done(finish_reason="cancelled")``.
        """
        reading = Reading(self._clock)

        def take(event: RawMessageStreamEvent) -> None:
            if text := reading.take(event):
                emit(Token(request.request_id, reading.pieces, text))
            else:
                advance()

        notices: tuple[str, ...] = ()
        try:
            call = build_call(request, self._settings, self._peer)
            notices = call.notices
            await self._read(call, reading, take)
            finish_reason = reading.finish_reason
        except asyncio.CancelledError:
            finish_reason = "cancelled"
        except ShammahError as error:
            return Failed(error.code, error.message, error.hint, request.request_id)
        return Done(
            request.request_id,
            finish_reason,
            reading.usage(),
            reading.timings(arrived_s),
            Provenance("cloud", reading.model or self._settings.model, engine="anthropic"),
            notices,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _read(self, call: Call, reading: Reading, take: Take) -> None:
        """Send ``call`` and read the stream to its end.

        Raises:
            ShammahError: with a code of `failures`.
        """
        try:
            await self._stream(call, reading, take)
        except (*_FAILURES, TimeoutError) as error:
            # What breaks after a complete answer is only the connection.
            if reading.stop_reason is None:
                began = reading.began
                raise failures.describe(error, self._settings, self._peer, began=began) from error
        if reading.stop_reason is None:
            if reading.began:
                raise failures.truncated(self._peer)
            raise failures.malformed(self._peer)

    async def _stream(self, call: Call, reading: Reading, take: Take) -> None:
        stream = await self._client.messages.create(
            model=call.model,
            max_tokens=call.max_tokens,
            messages=call.turns,
            system=call.system or anthropic.omit,
            stop_sequences=list(call.stop) or anthropic.omit,
            extra_body=call.extra_body or None,
            stream=True,
        )
        async with stream, asyncio.timeout(None) as limit:
            async for event in stream:
                take(event)
                if reading.stop_reason is not None and limit.when() is None:
                    limit.reschedule(asyncio.get_running_loop().time() + DRAIN_S)
