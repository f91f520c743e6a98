"""The HTTP client of what is elsewhere, watched: nothing goes out that was not written down.

httpcore2's trace extension reports when the connection is made and the request is about to go
out; there the ledger is written, and an error there keeps everything back. What comes in counts
as life, pings too, which the SDK drops. And one leak is stopped: when a TLS handshake is
cancelled, httpcore2 (2.16) closes the connection only for errors, not for a cancellation; it
would stay open for as long as the worker lives.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpx2

from shammah.errors import ShammahError
from workers import network
from workers.outgoing.errors import MalformedStreamError

QUIET = ("httpx2", "httpcore2")
"""Their debug lines hold requests and headers."""

LONGEST_EVENT = 1024 * 1024
"""Bytes of one event of a stream; those of the API have a few hundred."""

_LINE = 100
"""How many bytes a line counts for: the SDK copies all that it has of an event at each."""

_EVENT_ENDS = (b"\n\n", b"\r\r", b"\r\n\r\n")


@dataclass(slots=True)
class Exchange:
    """One request and its response.

    Attributes:
        record: writes down a body that is about to go to an address.
        advance: called for every piece that arrives.
        sent: whether the request went out (or began to).
        status: of the response; 0: there was none.
        refusal: why nothing was sent; the SDK would bury it.
    """

    record: Callable[[httpx2.URL, bytes], None]
    advance: Callable[[], None]
    sent: bool = False
    status: int = 0
    refusal: ShammahError | None = None


EXCHANGE: ContextVar[Exchange] = ContextVar("exchange")
"""That of the task that sends."""


def http_client(timeout: httpx2.Timeout, *, proxies: bool = True) -> httpx2.AsyncClient:
    """A client for whoever closes it.

    It follows no redirect: a text goes to the address that is set and to no other. ``proxies``:
    through those of the environment.
    """
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    return httpx2.AsyncClient(
        timeout=timeout,
        follow_redirects=False,
        mounts=network.mounts() if proxies else {},
        verify=network.ssl_context(),
        trust_env=proxies,
    )


def watch(client: httpx2.AsyncClient) -> None:
    """Have everything that ``client`` sends belong to the `EXCHANGE` of its task.

    Without one nothing is sent (LookupError).
    """
    client.event_hooks = {"request": [_before], "response": [_after]}


async def _before(request: httpx2.Request) -> None:
    exchange = EXCHANGE.get()
    body = await request.aread()
    opened: list[Any] = []

    async def trace(name: str, info: dict[str, Any]) -> None:
        if name.endswith("connect_tcp.complete"):
            opened.append(info["return_value"])
        elif name.endswith("start_tls.failed"):
            while opened:
                await opened.pop().aclose()
        elif name.endswith("send_request_headers.started") and info["request"].method != b"CONNECT":
            try:
                exchange.record(request.url, body)
            except ShammahError as error:
                exchange.refusal = error
                raise
            exchange.sent = True

    request.extensions["trace"] = trace
    request.headers["accept-encoding"] = "identity"


async def _after(response: httpx2.Response) -> None:
    exchange = EXCHANGE.get()
    if not exchange.sent:
        exchange.refusal = ShammahError(
            "internal",
            "A request was sent without being logged; the HTTP library has changed.",
            "Install the versions in constraints.txt.",
        )
        raise exchange.refusal
    exchange.status = response.status_code
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        # A few kilobytes can become gigabytes, for which every other answer would wait.
        raise MalformedStreamError("compressed, which was not requested")
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _Watched(response.stream, exchange.advance)


class _Watched(httpx2.AsyncByteStream):
    """A body that reports each of its pieces and refuses an endless event."""

    def __init__(self, stream: httpx2.AsyncByteStream, advance: Callable[[], None]) -> None:
        self._stream = stream
        self._advance = advance

    async def __aiter__(self) -> AsyncIterator[bytes]:
        held, last = 0, b""
        async for piece in self._stream:
            self._advance()
            text = last + piece
            end = max(text.rfind(one) for one in _EVENT_ENDS)
            new = piece if end < 0 else text[end:]
            held = (held if end < 0 else 0) + len(new) + _LINE * new.count(b"\n")
            last = text[-3:]
            if held > LONGEST_EVENT:
                raise MalformedStreamError("an event without end")
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()
