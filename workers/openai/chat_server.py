"""One server that speaks OpenAI's API: which model it has, and its answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2

from shammah.bus.messages import (
    Done,
    Failed,
    Generate,
    Provenance,
    Ready,
    Retrying,
    Timings,
    Token,
    ToolCall,
    Usage,
)
from shammah.errors import ShammahError
from shammah.settings.model import ServerSettings
from workers.openai.continuation import Joint, split_begun
from workers.openai.schema import SchemaCheck
from workers.openai.wire import (
    DONE,
    ENGINE,
    Chunk,
    MalformedChunkError,
    Offer,
    join_calls,
    make_body,
    read_chunk,
    read_error,
    read_models,
)
from workers.outgoing import transport
from workers.outgoing.errors import CallError, MalformedStreamError
from workers.outgoing.passage import Free, Passage, Price, Way
from workers.outgoing.retry import retry_after_s
from workers.text.stop_strings import StopStrings

BESIDE = "servers"
"""The role of the worker that asks the servers beside the local model."""

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 600.0
"""Between two bytes. While it reads a long prompt, such a server sends nothing at all."""

ALIVE_S = 10.0
"""How often an open connection counts as progress."""

LONGEST_LINE = 1024 * 1024
"""Characters of one line of a stream; usual ones have a few hundred."""

_OWN_WORDS = 300
"""Characters of the server's own that are shown."""

OPENAI = "api.openai.com"
"""Refuses ``max_tokens``, which all others know."""

_TOO_LONG = ("context length", "context size", "context window", "maximum context", "too long")
"""What is in the refusal of a conversation that is too long, with one server or another."""


_NAME_IT = "Load one there; or name it as model in its table, if the server only does not list it."


class ChatServer:
    """Any number of answers at a time, all in one event loop.

    Args:
        name: of the server in the settings.
        role: of the worker that asks.
        most: tokens of an answer whose request names no limit; ``None``: the server's own.
        way: to a server elsewhere; ``None``: it is on this machine, and nothing leaves.
        price: of its model, when it is asked.
        lost: called when an answer failed because the server has gone.
        http_client: replaces the real transport.
        clock: monotonic seconds.

    Attributes:
        offer: what it tells of its model, once it was found.
    """

    def __init__(
        self,
        name: str,
        settings: ServerSettings,
        *,
        role: str,
        most: int | None = None,
        way: Way | None = None,
        price: Callable[[], Price] = Free,
        lost: Callable[[], None] = lambda: None,
        http_client: httpx2.AsyncClient | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.name = name
        self.role = role
        self.way = way
        self.price = price
        self.lost = lost
        self.clock = clock
        self.offer = Offer()
        self._base = settings.base_url.rstrip("/")
        parts = urlsplit(self._base)
        self.host = parts.netloc.rpartition("@")[2]
        self.subject = f"The server {name} ({self.host})"
        self._most = most
        self.model = settings.model
        self._client = http_client or _make_client(settings.trust)
        if way is not None:
            transport.watch(self._client)

    async def find(self) -> Ready:
        """Ask which models it has, and take the one that is set, else the first.

        Raises:
            ShammahError: ``server_unreachable``, ``server_refused``, ``server_malformed`` or
                ``model_unknown``.
        """
        # A question for the list has no body, and so no line in the ledger.
        transport.EXCHANGE.set(transport.Exchange(lambda url, body: None, lambda: None))
        with self.described():
            response = await self._client.get(
                f"{self._base}/models", headers=self._headers(), timeout=CONNECT_TIMEOUT_S
            )
            if not response.is_success:
                raise self._refused(response)
            models = read_models(response.json())
        wanted = self.settings.model or next(iter(models), "")
        # `transformers serve` lists what the Hub's cache has, not the directory that it serves.
        listed = wanted in models or (bool(wanted) and (not models or wanted.startswith("/")))
        if not listed:
            has = f"It has {', '.join(list(models)[:8])}." if models else _NAME_IT
            what = f"no model {wanted:.80}" if wanted else "no model loaded"
            raise ShammahError("model_unknown", f"{self.subject} has {what}.", has)
        self.model, self.offer = wanted, models.get(wanted, Offer())
        context = self.settings.context_length or self.offer.context
        return Ready(wanted, device=self.host, context_length=context, engine=ENGINE)

    async def answer(
        self,
        request: Generate,
        reply: Callable[[Token | Retrying], None],
        arrived_s: float,
        advance: Callable[[], None] = lambda: None,
    ) -> Done | Failed:
        """Answer ``request``, which arrived at ``arrived_s`` on the clock; see `Backend`."""
        alive = asyncio.create_task(_tick(advance))
        try:
            return await _Question(self, request, reply, advance).answer(arrived_s)
        finally:
            alive.cancel()

    def make_body(self, request: Generate) -> tuple[dict[str, Any], int]:
        """What is sent for ``request``, and the longest answer in tokens (0: not known)."""
        messages, _ = split_begun(request.messages)
        most = self._most if request.max_new_tokens is None else request.max_new_tokens
        body = make_body(self.model, messages, request.sampling, most)
        if self.host == OPENAI and "max_tokens" in body:
            body["max_completion_tokens"] = body.pop("max_tokens")
        if self.settings.trust != "cloud":  # a provider may refuse what it does not know
            body["chat_template_kwargs"] = {"enable_thinking": request.think}
        return body, most or 0

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def stream(self, body: dict[str, Any]) -> AsyncIterator[Chunk]:
        """Send ``body`` and yield what comes.

        Raises:
            ShammahError: it is refused. What the transport raises is for `described`.
        """
        url = f"{self._base}/chat/completions"
        async with self._client.stream("POST", url, json=body, headers=self._headers()) as response:
            if not response.is_success:
                await response.aread()
                raise self._refused(response)
            async for line in response.aiter_lines():
                if len(line) > LONGEST_LINE:
                    raise MalformedChunkError
                field, _, data = line.partition(":")
                if field == "error":  # llama-server's, without an event around it
                    data = f'{{"error": {data}}}'
                elif field != "data":
                    continue
                if data.strip() == DONE:
                    return
                yield read_chunk(data)

    def _headers(self) -> dict[str, str]:
        headers = {"accept-encoding": "identity"}
        if self.settings.key:
            headers["authorization"] = f"Bearer {self.settings.key}"
        return headers

    # --- what can go wrong ----------------------------------------------------------------

    @contextlib.contextmanager
    def described(self) -> Iterator[None]:
        """Turn what the transport and the decoder raise into a `ShammahError`."""
        try:
            yield
        except httpx2.TimeoutException as error:
            if isinstance(error, httpx2.ConnectTimeout):
                raise self._unreachable("it did not respond in time") from error
            raise self.broken("has sent nothing for a long time") from error
        except (httpx2.ConnectError, httpx2.ProxyError) as error:
            raise self._unreachable(_why_unreachable(error)) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self.broken() from error
        except (MalformedChunkError, MalformedStreamError, ValueError) as error:
            raise ShammahError(
                "server_malformed",
                f"{self.subject} sent something that is not of OpenAI's API.",
                "Check base_url in its table: it usually ends in /v1.",
            ) from error

    def _unreachable(self, why: str) -> ShammahError:
        hint = "Start the server, or choose another model with /model."
        if self.settings.trust != "local":
            hint = "Check the network, and base_url in its table in config.toml."
        return CallError("server_unreachable", f"{self.subject} cannot be reached: {why}.", hint)

    def broken(self, what: str = "broke off before the answer was complete") -> ShammahError:
        """The connection ended, but not the answer."""
        return CallError("server_interrupted", f"{self.subject} {what}.", "Ask again.")

    def failed(self, words: str) -> ShammahError:
        """The server itself said, in ``words``, that it cannot go on."""
        said = _own_words(words, self.settings.key)
        return self._failed("server_refused", f"broke off: {said}")

    def _failed(self, code: str, what: str) -> ShammahError:
        return CallError(code, f"{self.subject} {what}.", "See the server's log.")

    def _refused(self, response: httpx2.Response) -> ShammahError:
        status, body = response.status_code, response.content
        with contextlib.suppress(ValueError):
            body = read_error(response.json()).encode()
        if "html" in response.headers.get("content-type", ""):  # a page says less than its status
            body = response.reason_phrase.encode()
        words = _own_words(body.decode("utf-8", "replace"), self.settings.key)
        said = f"{status}: {words}" if words and status != 401 else str(status)
        if status in (400, 413, 422) and any(one in words.lower() for one in _TOO_LONG):
            why = f"The conversation is too long for {self.subject[0].lower()}{self.subject[1:]}"
            return ShammahError("context_too_long", f"{why} ({said}).", "Start a new conversation.")
        if status in (401, 403):
            hint = "Check key in its table in config.toml."
            return ShammahError("server_refused", f"{self.subject} refused the key ({said}).", hint)
        if status in (429, 503, 529):
            return CallError(
                "server_busy",
                f"{self.subject} is busy ({said}).",
                "Ask again in a moment.",
                brief=f"{self.subject} is busy",
                retry_after_s=retry_after_s(response.headers),
            )
        if status >= 500 and status not in (501, 505):  # these stay so, however often one asks
            return self._failed("server_error", f"failed ({said})")
        return self._failed("server_refused", f"did not accept the question ({said})")


class _Question:
    """One question; see `ChatServer.answer` and `workers.outgoing.passage.Question`."""

    def __init__(
        self,
        server: ChatServer,
        request: Generate,
        reply: Callable[[Token | Retrying], None],
        advance: Callable[[], None],
    ) -> None:
        self._server = server
        self._request = request
        self._reply = reply
        self._advance = advance
        self._begun = split_begun(request.messages)[1]
        self._body: dict[str, Any] = {}
        self._answer = self._begin()

    async def answer(self, arrived_s: float) -> Done | Failed:
        server, request = self._server, self._request
        reason = ""
        price = server.price()
        try:
            if server.way is not None:
                passage = Passage(server.way, request, self._reply, self._advance)
            self._body, most = server.make_body(request)
            async with asyncio.timeout(request.timeout_s):
                if server.way is None:
                    await self.ask(1)
                else:
                    await passage.go(self, server.model, price, most)
        except asyncio.CancelledError:
            reason = "cancelled"
        except TimeoutError:
            reason = "timeout"
        except ShammahError as error:
            if error.code in ("server_unreachable", "server_interrupted"):
                server.lost()
            self._answer.finish()
            return Failed(error.code, error.message, error.hint, request.request_id)
        self._answer.finish()
        model = self._answer.model or server.model
        if server.role == BESIDE:
            model = f"{server.name}/{model}"
        return Done(
            request.request_id,
            reason or self._answer.finish_reason,
            price.with_cost(self.usage()) if server.role == "cloud" else self.usage(),
            self._answer.timings(arrived_s),
            Provenance(server.role, model, engine=ENGINE, device=server.host),
            tool_calls=self._answer.calls,
            stop="" if reason else self._answer.stop,
        )

    @property
    def shown(self) -> bool:
        return self._answer.shown

    def usage(self) -> Usage:
        return self._answer.usage

    async def ask(self, attempt: int) -> None:
        """Send the question and read its answer.

        Raises:
            ShammahError: see `ChatServer.described`.
        """
        if attempt > 1:
            self._answer = self._begin()
        server, answer = self._server, self._answer
        check = SchemaCheck(server.subject, self._request.sampling.schema, self._begun)
        with server.described():
            async for chunk in server.stream(self._body):
                if chunk.error:
                    raise server.failed(chunk.error)
                check.add(chunk.text)
                answer.take(chunk)
                self._advance()
            answer.settle()
        if not answer.finish_reason:
            raise server.broken()
        check.finish(answer.finish_reason)

    def _begin(self) -> _Answer:
        joint = Joint(self._begun)
        return _Answer(self._request, joint, self._reply, self._server.clock)


class _Answer:
    """What has come of one answer."""

    def __init__(
        self,
        request: Generate,
        joint: Joint,
        reply: Callable[[Token], None],
        clock: Callable[[], float],
    ) -> None:
        self.finish_reason = ""
        self.shown = False
        self.model = ""
        self.calls: tuple[ToolCall, ...] = ()
        self._begun_calls: list[tuple[int, ToolCall]] = []
        self._request_id = request.request_id
        self._joint = joint
        # `transformers serve` sends the stop text, too, and what else its last token has.
        self._stops = StopStrings(request.sampling.stop)
        self._told = ""
        self._reply = reply
        self._clock = clock
        self._asked = clock()
        self._first = self._last = 0.0
        self._pieces = 0
        self._usage: Usage | None = None

    def take(self, chunk: Chunk) -> None:
        """Send on what came, and remember the rest."""
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.model = chunk.model or self.model
        self._begun_calls += chunk.calls
        self._told = chunk.stop or self._told
        self._usage = chunk.usage or self._usage
        if chunk.text or chunk.reasoning:
            self._last = self._clock()
            self._first = self._first or self._last
            self._pieces += 1
        if chunk.reasoning:
            self._reply(Token(self._request_id, self._pieces, chunk.reasoning, reasoning=True))
        self._send(self._joint.add(chunk.text) if chunk.text else "")

    def settle(self) -> None:
        """Join the calls, unless the answer was cut off in them. Servers say ``stop`` of a call
        that was asked for by its name.

        Raises:
            MalformedChunkError: one has arguments that are no object.
        """
        if self._begun_calls and self.finish_reason in ("stop", "tool_call"):
            self.calls, self.finish_reason = join_calls(self._begun_calls), "tool_call"

    def finish(self) -> None:
        """Send what was held back."""
        self._send(self._joint.finish(), last=True)

    def _send(self, text: str, *, last: bool = False) -> None:
        text = self._stops.add(text) + (self._stops.finish() if last else "")
        if text:
            self.shown = True
            self._reply(Token(self._request_id, self._pieces, text))

    @property
    def stop(self) -> str:
        """The text that ended the answer, if that is known."""
        return self._stops.found or self._told

    @property
    def usage(self) -> Usage:
        """As the server counts; without its count, a piece is a token."""
        return self._usage or Usage(output_tokens=self._pieces)

    def timings(self, arrived_s: float) -> Timings:
        """Seconds since ``arrived_s``; how long the server computed the prompt it does not say."""
        span, tokens = self._last - self._first, self.usage.output_tokens
        return Timings(
            queue_s=self._asked - arrived_s,
            ttft_s=self._first - arrived_s if self._first else 0.0,
            total_s=self._clock() - arrived_s,
            decode_tokens_per_second=(tokens - 1) / span if span > 0 and tokens > 1 else 0.0,
        )


def _make_client(trust: str) -> httpx2.AsyncClient:
    timeout = httpx2.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    if trust != "local":
        # To a machine of one's own no proxy of others stands between.
        return transport.http_client(timeout, proxies=trust == "cloud")
    # On this machine no proxy stands between, whatever the environment says; and a redirect could
    # lead to another one.
    return httpx2.AsyncClient(timeout=timeout, follow_redirects=False, trust_env=False)


def _why_unreachable(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        match cause:
            case socket.gaierror():
                return "its name cannot be resolved"
            case ssl.SSLError():
                return "there is no secure connection"
            case httpx2.ProxyError():
                return "the proxy refuses"
        cause = cause.__cause__ or cause.__context__
    return "nothing is listening there"


async def _tick(advance: Callable[[], None]) -> None:
    """An open connection is a sign of life, since nothing else comes while a prompt is read."""
    while True:
        await asyncio.sleep(ALIVE_S)
        advance()


def _own_words(text: str, key: str) -> str:
    """The server's text on one line, without control characters and without the key."""
    text = text.replace(key, "***") if key else text
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split()).rstrip(".")
    return text if len(text) <= _OWN_WORDS else text[: _OWN_WORDS - 1] + "…"
