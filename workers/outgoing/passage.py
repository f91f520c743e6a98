"""One question on its way out of this machine: gate, budget, attempts, ledger."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

import httpx2

from shammah.bus.messages import Generate, Retrying, Token, Usage
from shammah.errors import ShammahError
from shammah.privacy import Rules, check_outgoing
from shammah.privacy.ledger import Ledger, Outcome, Sent
from workers.outgoing import transport
from workers.outgoing.errors import CallError
from workers.outgoing.retry import attempts, wait_s

log = logging.getLogger(__name__)


class Price(Protocol):
    """What a model costs."""

    def with_cost(self, usage: Usage) -> Usage:
        """``usage`` with what it costs."""

    def most(self, body_bytes: int, max_tokens: int) -> float | None:
        """The most that a request can cost, in US dollars; ``None``: that is not known."""


class Free:
    """The `Price` of a machine of the person's own."""

    def with_cost(self, usage: Usage) -> Usage:
        return replace(usage, cost=0.0)

    def most(self, body_bytes: int, max_tokens: int) -> float | None:
        return 0.0


class Question(Protocol):
    """What is asked, by one backend."""

    @property
    def shown(self) -> bool:
        """Whether any text was passed on."""

    def usage(self) -> Usage:
        """What the last attempt has taken so far."""

    async def ask(self, attempt: int) -> None:
        """Send the question and read the answer to its end.

        Raises:
            ShammahError: it failed; a `CallError` may be worth another attempt.
        """


@dataclass(frozen=True, slots=True)
class Way:
    """The way to one server.

    Attributes:
        ledger: has each body before it leaves.
        rules: of what may not leave; ``None``: private questions may go there, too.
        server: its name in the settings; empty: Claude's.
        check_budget: refuses when the day's money is spent.
        patient: whether a failed call is tried again; else others are asked.
        sleep: waits so many seconds between two attempts.
        chance: a number from 0 to 1, for those waits.
    """

    ledger: Ledger
    rules: Rules | None
    server: str = ""
    check_budget: Callable[[], None] = lambda: None
    patient: bool = True
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random


class Passage:
    """One question on ``way``. Every piece of its answer goes to ``reply``; ``advance`` is called
    for all else that comes.

    Raises:
        ShammahError: ``private``; then nothing may be sent.
    """

    def __init__(
        self,
        way: Way,
        request: Generate,
        reply: Callable[[Token | Retrying], None],
        advance: Callable[[], None],
    ) -> None:
        if way.rules is not None:
            check_outgoing(request.messages, way.rules, request.sampling)
        self._way = way
        self._request_id = request.request_id
        self._reply = reply
        self._advance = advance
        self._record_id = ""

    async def go(self, question: Question, model: str, price: Price, max_tokens: int) -> None:
        """Make attempt after attempt, but none after text was shown: from there on the frontend
        decides what follows.

        Args:
            question: is asked.
            model: by its name in the ledger.
            price: of it.
            max_tokens: the longest answer.
        """
        attempt, way = 1, self._way
        while True:
            way.check_budget()

            def record(url: httpx2.URL, body: bytes, attempt: int = attempt) -> None:
                most = price.most(len(body), max_tokens)
                self._write(attempt, url, body, model=model, most=most)

            try:
                await self._attempt(question, attempt, record, price)
                return
            except CallError as error:
                wait = wait_s(error, attempt, way.chance()) if way.patient else None
                if wait is None or question.shown:
                    raise
                attempt += 1
                log.info("request %s: %s, again", self._request_id, error.code)
                self._reply(Retrying(self._request_id, error.brief, wait, attempt, attempts(error)))
            await way.sleep(wait)

    async def _attempt(
        self,
        question: Question,
        attempt: int,
        record: Callable[[httpx2.URL, bytes], None],
        price: Price,
    ) -> None:
        exchange = transport.Exchange(record, self._advance)
        transport.EXCHANGE.set(exchange)
        outcome = "internal"
        try:
            await question.ask(attempt)
            outcome = "answered"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except ShammahError as error:
            refusal = exchange.refusal or error
            outcome = refusal.code
            if refusal is error:
                raise
            raise refusal from error
        finally:
            if exchange.sent:
                self._settle(outcome, exchange.status, price.with_cost(question.usage()))

    def _write(
        self, attempt: int, url: httpx2.URL, body: bytes, *, model: str, most: float | None
    ) -> None:
        self._record_id = os.urandom(8).hex()
        self._way.ledger.write_sent(
            Sent(
                id=self._record_id,
                time="",
                request_id=self._request_id,
                attempt=attempt,
                scheme=url.scheme,
                host=url.netloc.decode("ascii", "replace"),
                path=url.path,
                model=model,
                bytes=len(body),
                sha256=hashlib.sha256(body).hexdigest(),
                most=most,
                server=self._way.server,
            )
        )

    def _settle(self, outcome: str, status: int, usage: Usage) -> None:
        settled = Outcome(
            outcome,
            status,
            usage.input_tokens,
            usage.output_tokens,
            usage.cost,
            reused_tokens=usage.reused_tokens,
            written_tokens=usage.written_tokens,
        )
        try:
            self._way.ledger.write_outcome(self._record_id, settled)
        except ShammahError as error:
            # It stays as unknown, with the most that it can have cost.
            log.warning("%s", error.message)
