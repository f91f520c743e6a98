"""One server that speaks OpenAI's API: which model it has, and its answers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2

from shammah.bus.messages import (
    Done,
    Failed,
    Generate,
    Provenance,
    Ready,
    Timings,
    Token,
    ToolCall,
    Usage,
)
from shammah.errors import ShammahError
from shammah.settings.model import ServerSettings
from workers.servers.continuation import Joint, split_begun
from workers.servers.schema import SchemaCheck
from workers.servers.wire import (
    DONE,
    Chunk,
    MalformedChunkError,
    join_calls,
    make_body,
    read_chunk,
    read_error,
    read_models,
)
from workers.text.stop_strings import StopStrings

ENGINE = "server"

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 600.0
"""Between two bytes. While it reads a long prompt, such a server sends nothing at all."""

ALIVE_S = 10.0
"""How often an open connection counts as progress."""

LONGEST_LINE = 1024 * 1024
"""Characters of one line of a stream; usual ones have a few hundred."""

_OWN_WORDS = 300
"""Characters of the server's own that are shown."""

_TOO_LONG = ("context length", "context size", "context window", "maximum context", "too long")
"""What is in the refusal of a conversation that is too long, with one server or another."""


_NAME_IT = "Load one there; or name it as model in its table, if the server only does not list it."


class ChatServer:
    """Any number of answers at a time, all in one event loop.

    Args:
        name: of the server in the settings.
        role: of the worker that asks.
        most: tokens of an answer whose request names no limit; ``None``: the server's own.
        lost: called when an answer failed because the server has gone.
        http_client: replaces the real transport.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        settings: ServerSettings,
        *,
        role: str,
        most: int | None = None,
        lost: Callable[[], None] = lambda: None,
        http_client: httpx2.AsyncClient | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._base = settings.base_url.rstrip("/")
        parts = urlsplit(self._base)
        self._host = parts.netloc.rpartition("@")[2]
        self._subject = f"The server {name} ({self._host})"
        self._role = role
        self._most = most
        self._lost = lost
        self._clock = clock
        self._model = settings.model
        timeout = httpx2.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        # On this machine no proxy stands between, whatever the environment says; and a redirect
        # could lead to another one.
        self._client = http_client or httpx2.AsyncClient(
            timeout=timeout, follow_redirects=False, trust_env=False
        )

    async def find(self) -> Ready:
        """Ask which models it has, and take the one that is set, else the first.

        Raises:
            ShammahError: ``server_unreachable``, ``server_refused``, ``server_malformed`` or
                ``model_unknown``.
        """
        with self._described():
            response = await self._client.get(
                f"{self._base}/models", headers=self._headers(), timeout=CONNECT_TIMEOUT_S
            )
            if not response.is_success:
                raise self._refused(response.status_code, response.content)
            models = read_models(response.json())
        wanted = self._settings.model or next(iter(models), "")
        # `transformers serve` lists what the Hub's cache has, not the directory that it serves.
        listed = wanted in models or (bool(wanted) and (not models or wanted.startswith("/")))
        if not listed:
            has = f"It has {', '.join(list(models)[:8])}." if models else _NAME_IT
            what = f"no model {wanted:.80}" if wanted else "no model loaded"
            raise ShammahError("model_unknown", f"{self._subject} has {what}.", has)
        self._model = wanted
        context = self._settings.context_length or models.get(wanted, 0)
        return Ready(wanted, device=self._host, context_length=context, engine=ENGINE)

    async def answer(
        self,
        request: Generate,
        reply: Callable[[Token], None],
        arrived_s: float,
        advance: Callable[[], None] = lambda: None,
    ) -> Done | Failed:
        """Answer ``request``, which arrived at ``arrived_s`` on the clock; see `Backend`."""
        messages, begun = split_begun(request.messages)
        most = self._most if request.max_new_tokens is None else request.max_new_tokens
        body = make_body(self._model, messages, request.sampling, most)
        body["chat_template_kwargs"] = {"enable_thinking": request.think}
        answer = _Answer(request, Joint(begun), reply, self._clock)
        check = SchemaCheck(self._subject, request.sampling.schema, begun)
        reason = ""
        alive = asyncio.create_task(_tick(advance))
        try:
            with self._described():
                async with asyncio.timeout(request.timeout_s):
                    async for chunk in self._stream(body):
                        if chunk.error:
                            words = _own_words(chunk.error, self._settings.key)
                            raise self._failed(f"broke off: {words}")
                        check.add(chunk.text)
                        answer.take(chunk)
                        advance()
                    if not answer.finish_reason:
                        raise self._broken()
                    check.finish(answer.finish_reason)
        except asyncio.CancelledError:
            reason = "cancelled"
        except TimeoutError:
            reason = "timeout"
        except ShammahError as error:
            if error.code in ("server_unreachable", "server_interrupted"):
                self._lost()
            answer.finish()
            return Failed(error.code, error.message, error.hint, request.request_id)
        finally:
            alive.cancel()
        answer.finish()
        model = answer.model or self._model
        return Done(
            request.request_id,
            reason or answer.finish_reason,
            answer.usage,
            answer.timings(arrived_s),
            Provenance(self._role, model, engine=ENGINE, device=self._host),
            tool_calls=join_calls(answer.calls),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _stream(self, body: dict[str, Any]) -> AsyncIterator[Chunk]:
        url = f"{self._base}/chat/completions"
        async with self._client.stream("POST", url, json=body, headers=self._headers()) as response:
            if not response.is_success:
                raise self._refused(response.status_code, await response.aread())
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
        if self._settings.key:
            headers["authorization"] = f"Bearer {self._settings.key}"
        return headers

    # --- what can go wrong ----------------------------------------------------------------

    @contextlib.contextmanager
    def _described(self) -> Any:
        """Turn what the transport and the decoder raise into a `ShammahError`."""
        try:
            yield
        except httpx2.TimeoutException as error:
            if isinstance(error, httpx2.ConnectTimeout):
                raise self._unreachable("it did not respond in time") from error
            raise self._broken("has sent nothing for a long time") from error
        except httpx2.ConnectError as error:
            raise self._unreachable("nothing is listening there") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._broken() from error
        except (MalformedChunkError, ValueError) as error:
            raise ShammahError(
                "server_malformed",
                f"{self._subject} sent something that is not of OpenAI's API.",
                "Check base_url in its table: it usually ends in /v1.",
            ) from error

    def _unreachable(self, why: str) -> ShammahError:
        hint = "Start the server, or choose another model with /model."
        return ShammahError(
            "server_unreachable", f"{self._subject} cannot be reached: {why}.", hint
        )

    def _broken(self, what: str = "broke off before the answer was complete") -> ShammahError:
        return ShammahError("server_interrupted", f"{self._subject} {what}.", "Ask again.")

    def _failed(self, what: str) -> ShammahError:
        return ShammahError("server_refused", f"{self._subject} {what}.", "See the server's log.")

    def _refused(self, status: int, body: bytes) -> ShammahError:
        with contextlib.suppress(ValueError):
            body = read_error(httpx2.Response(200, content=body).json()).encode()
        words = _own_words(body.decode("utf-8", "replace"), self._settings.key)
        said = f"{status}: {words}" if words and status != 401 else str(status)
        if status in (400, 413, 422) and any(one in words.lower() for one in _TOO_LONG):
            why = f"The conversation is too long for {self._subject[0].lower()}{self._subject[1:]}"
            return ShammahError("context_too_long", f"{why} ({said}).", "Start a new conversation.")
        if status in (401, 403):
            hint = "Check key in its table in config.toml."
            return ShammahError(
                "server_refused", f"{self._subject} refused the key ({said}).", hint
            )
        if status in (429, 503):
            return ShammahError(
                "server_busy", f"{self._subject} is busy ({said}).", "Ask again in a moment."
            )
        return self._failed(f"did not accept the question ({said})")


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
        self.model = ""
        self.calls: list[tuple[int, ToolCall]] = []
        self._request_id = request.request_id
        self._joint = joint
        # `transformers serve` sends the stop text, too, and what else its last token has.
        self._stops = StopStrings(request.sampling.stop)
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
        self.calls += chunk.calls
        self._usage = chunk.usage or self._usage
        if chunk.text or chunk.reasoning:
            self._last = self._clock()
            self._first = self._first or self._last
            self._pieces += 1
        if chunk.reasoning:
            self._reply(Token(self._request_id, self._pieces, chunk.reasoning, reasoning=True))
        self._send(self._joint.add(chunk.text) if chunk.text else "")

    def finish(self) -> None:
        """Send what was held back."""
        self._send(self._joint.finish(), last=True)

    def _send(self, text: str, *, last: bool = False) -> None:
        text = self._stops.add(text) + (self._stops.finish() if last else "")
        if text:
            self._reply(Token(self._request_id, self._pieces, text))

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
