"""One question on its way: the door, the budget, the attempts, the ledger."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from shammah.bus.messages import Done, Failed, Generate, Provenance, Retrying, Token
from shammah.errors import ShammahError
from shammah.privacy import Rules, check_door
from shammah.privacy.ledger import Ledger, Outcome, Sent
from shammah.settings.model import CloudSettings
from workers.cloud.budget import Budget
from workers.cloud.continuation import Joint, split_begun
from workers.cloud.models import model_of
from workers.cloud.reading import Reading
from workers.cloud.request import Call, Peer, build_call
from workers.cloud.retry import CloudError, attempts, wait_s
from workers.cloud.transport import Exchange

if TYPE_CHECKING:
    import httpx2
    from anthropic.types import RawMessageStreamEvent

log = logging.getLogger(__name__)


class Server(Protocol):
    """What a question needs: `workers.cloud.claude.Claude`."""

    settings: CloudSettings
    peer: Peer
    rules: Rules
    ledger: Ledger
    budget: Budget
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    chance: Callable[[], float]

    async def read(
        self,
        call: Call,
        exchange: Exchange,
        reading: Reading,
        take: Callable[[RawMessageStreamEvent], None],
    ) -> None: ...


class Question:
    """See `workers.cloud.claude.Claude.answer`."""

    def __init__(
        self,
        server: Server,
        request: Generate,
        reply: Callable[[Token | Retrying], None],
        arrived_s: float,
        advance: Callable[[], None],
    ) -> None:
        self._server = server
        self._request = request
        self._reply = reply
        self._arrived_s = arrived_s
        self._advance = advance
        self._model = model_of(server.settings)
        self._reading = Reading(server.clock)
        self._begun = split_begun(request.messages)[1]
        self._joint = Joint(self._begun)
        self._shown = False
        self._record_id = ""

    async def answer(self) -> Done | Failed:
        """Ask until there is an answer, or none is to be had."""
        notices: tuple[str, ...] = ()
        request = self._request
        try:
            check_door(request.messages, self._server.rules)
            call = build_call(request, self._server.settings, self._server.peer)
            notices = call.notices
            async with asyncio.timeout(request.timeout_s):
                await self._ask(call)
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
            usage=self._model.with_cost(self._reading.usage()),
            timings=self._reading.timings(self._arrived_s),
            provenance=Provenance(
                "cloud", self._reading.model or self._server.settings.model, engine="anthropic"
            ),
            notices=notices,
        )

    async def _ask(self, call: Call) -> None:
        """Attempt after attempt, but none after text was shown: who goes on from there is for
        the frontend to say."""
        attempt = 1
        while True:
            self._server.budget.check()
            try:
                await self._attempt(call, attempt)
                return
            except CloudError as error:
                wait = wait_s(error, attempt, self._server.chance())
                if wait is None or self._shown:
                    raise
                attempt += 1
                log.info("request %s: %s, again", self._request.request_id, error.code)
                self._reply(
                    Retrying(self._request.request_id, error.brief, wait, attempt, attempts(error))
                )
            await self._server.sleep(wait)

    async def _attempt(self, call: Call, attempt: int) -> None:
        if attempt > 1:
            self._reading = Reading(self._server.clock)
            self._joint = Joint(self._begun)
        exchange = Exchange(lambda url, body: self._record(call, attempt, url, body), self._advance)
        outcome = "answered"
        try:
            await self._server.read(call, exchange, self._reading, self._take)
            self._report(self._joint.finish())
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except ShammahError as error:
            outcome = error.code
            raise
        except BaseException:
            outcome = "internal"
            raise
        finally:
            if exchange.sent:
                self._settle(outcome, exchange.status)

    def _take(self, event: RawMessageStreamEvent) -> None:
        self._report(self._joint.add(self._reading.take(event)))

    def _report(self, text: str) -> None:
        if text:
            self._shown = True
            self._reply(Token(self._request.request_id, self._reading.pieces, text))
        else:
            self._advance()

    def _record(self, call: Call, attempt: int, url: httpx2.URL, body: bytes) -> None:
        self._record_id = os.urandom(8).hex()
        self._server.ledger.write_sent(
            Sent(
                id=self._record_id,
                time="",
                request_id=self._request.request_id,
                attempt=attempt,
                scheme=url.scheme,
                host=url.netloc.decode("ascii", "replace"),
                path=url.path,
                model=call.model,
                bytes=len(body),
                sha256=hashlib.sha256(body).hexdigest(),
                most=self._model.most(len(body), call.max_tokens),
            )
        )

    def _settle(self, outcome: str, status: int) -> None:
        usage = self._model.with_cost(self._reading.usage())
        settled = Outcome(outcome, status, usage.input_tokens, usage.output_tokens, usage.cost)
        try:
            self._server.ledger.write_outcome(self._record_id, settled)
        except ShammahError as error:
            # It stays as unknown, with the most that it can have cost.
            log.warning("%s", error.message)
