"""Answers from the Messages API, through the SDK."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import anthropic
import httpx2

from shammah.bus.messages import Done, Failed, Generate, Provenance, Retrying, Token, Usage
from shammah.errors import ShammahError
from shammah.privacy import Rules
from shammah.privacy.ledger import Ledger
from shammah.settings.model import Settings
from workers.cloud import failures
from workers.cloud.budget import Budget
from workers.cloud.models import model_of
from workers.cloud.reading import Reading
from workers.cloud.request import Call, Peer, build_call
from workers.openai.continuation import Joint, split_begun
from workers.outgoing import transport
from workers.outgoing.errors import MalformedStreamError
from workers.outgoing.passage import Passage, Way

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
"""Between two bytes. The API sends pings while it thinks."""

DRAIN_S = 1.0
"""After the answer is complete, the end of the stream is awaited only this long: it lets the
connection be used again, and nothing else comes."""

_QUIET = ("anthropic", *transport.QUIET)
"""ANTHROPIC_LOG can turn their debug lines on."""

_FAILURES = (
    anthropic.APIError,
    httpx2.HTTPError,
    json.JSONDecodeError,
    UnicodeDecodeError,
    MalformedStreamError,
)
"""Once the stream has begun, the SDK lets the errors of its transport and decoder through."""


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
        ledger = Ledger(settings.home, wall)
        self.way = Way(
            ledger,
            Rules(settings.privacy, os.path.expanduser("~")),
            check_budget=Budget(settings, ledger).check,
            sleep=sleep,
            chance=chance,
        )
        self.clock = clock
        # Key and address are always given: the SDK would otherwise look into the environment
        # and into profiles on disk, and send questions on behalf of somebody else.
        timeout = httpx2.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, pool=CONNECT_TIMEOUT_S)
        client = http_client or transport.http_client(timeout)
        transport.watch(client)
        self.client = anthropic.AsyncAnthropic(
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
        return await _Question(self, request, reply, arrived_s, advance).answer()

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()


class _Question:
    """One question on its way; see `Claude.answer` and `workers.outgoing.passage.Question`."""

    def __init__(
        self,
        claude: Claude,
        request: Generate,
        reply: Callable[[Token | Retrying], None],
        arrived_s: float,
        advance: Callable[[], None],
    ) -> None:
        self._claude = claude
        self._request = request
        self._reply = reply
        self._arrived_s = arrived_s
        self._advance = advance
        self._settings = claude.settings
        if request.model:
            self._settings = replace(claude.settings, model=request.model)
        self._model = model_of(self._settings)
        self._reading = Reading(claude.clock)
        self._begun = split_begun(request.messages)[1]
        self._joint = Joint(self._begun)
        self._call: Call | None = None
        self.shown = False

    async def answer(self) -> Done | Failed:
        """Ask until there is an answer, or none is to be had."""
        notices: tuple[str, ...] = ()
        unseen = messages = 0
        request = self._request
        try:
            passage = Passage(self._claude.way, request, self._reply, self._advance)
            call = self._call = build_call(request, self._settings, self._claude.peer)
            notices, unseen, messages = call.notices, call.unseen, call.messages
            async with asyncio.timeout(request.timeout_s):
                await passage.go(self, call.model, self._model, call.max_tokens)
            finish_reason = self._reading.finish_reason
            notices += self._reading.notices
        except asyncio.CancelledError:
            finish_reason = "cancelled"
        except TimeoutError:
            finish_reason = "timeout"
        except ShammahError as error:
            return Failed(error.code, error.message, error.hint, request.request_id)
        return Done(
            request.request_id,
            finish_reason,
            usage=replace(self._model.with_cost(self.usage()), unseen=unseen, messages=messages),
            timings=self._reading.timings(self._arrived_s),
            provenance=Provenance(
                "cloud", self._reading.model or self._settings.model, engine="anthropic"
            ),
            notices=notices,
            tool_calls=self._reading.tool_calls,
            stop=self._reading.stop,
        )

    def usage(self) -> Usage:
        return self._reading.usage()

    async def ask(self, attempt: int) -> None:
        """Send the call and read the stream to its end.

        Raises:
            ShammahError: with a code of `failures`.
        """
        if attempt > 1:
            self._reading = Reading(self._claude.clock)
            self._joint = Joint(self._begun)
        claude, reading = self._claude, self._reading
        assert self._call is not None
        try:
            await self._stream(self._call)
        except (*_FAILURES, TimeoutError) as error:
            # What breaks after a complete answer is only the connection.
            if reading.stop_reason is None:
                began = reading.began
                raise failures.describe(error, self._settings, claude.peer, began=began) from error
        if reading.stop_reason is None:
            raise (failures.truncated if reading.began else failures.malformed)(claude.peer)
        self._report(self._joint.finish())

    async def _stream(self, call: Call) -> None:
        # Always as a stream: nothing is held back, and the API wants it for long answers.
        stream = await self._claude.client.messages.create(
            model=call.model,
            max_tokens=call.max_tokens,
            messages=call.turns,
            system=call.system or anthropic.omit,
            stop_sequences=list(call.stop) or anthropic.omit,
            output_config=call.output_config or anthropic.omit,
            thinking={"type": "adaptive"} if call.adaptive else anthropic.omit,
            tools=call.tools or anthropic.omit,
            tool_choice=call.tool_choice or anthropic.omit,
            extra_body=call.extra_body or None,
            stream=True,
        )
        async with stream, asyncio.timeout(None) as limit:
            async for event in stream:
                self._report(self._joint.add(self._reading.take(event)))
                if self._reading.stop_reason is not None and limit.when() is None:
                    limit.reschedule(asyncio.get_running_loop().time() + DRAIN_S)

    def _report(self, text: str) -> None:
        if text:
            self.shown = True
            self._reply(Token(self._request.request_id, self._reading.pieces, text))
        else:
            self._advance()
