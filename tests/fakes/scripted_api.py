"""A Messages API that sends what a test scripts, without a socket: the real SDK on top of it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import httpx2

from shammah.bus.messages import ChatMessage, Done, Failed, Generate, Retrying, Token
from shammah.settings.load import home_directory
from shammah.settings.model import CloudSettings, PrivacySettings, Settings
from workers.cloud.claude import Claude

KEY = "sk-secret-0123456789"
LIMIT_S = 60.0

Handler = Callable[[httpx2.Request], Any]
Replies = list[Token | Retrying]
Outcome = tuple[list[Token], Done | Failed]


class ScriptedTransport(httpx2.AsyncBaseTransport):
    """Answers with ``handler``, and tells when a request goes out, as httpcore2 does."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()
        sending = {"request": SimpleNamespace(method=request.method.encode())}
        await request.extensions["trace"]("http11.send_request_headers.started", sending)
        response = self._handler(request)
        response.request = request
        assert isinstance(response, httpx2.Response)
        return response


def settings(*, privacy: PrivacySettings | None = None, **cloud: Any) -> Settings:
    """Settings with a key and a model, in the test's own home."""
    one = CloudSettings(**{"api_key": KEY, "model": "claude-set", **cloud})
    return Settings(home_directory(os.environ), cloud=one, privacy=privacy or PrivacySettings())


def make_client(handler: Handler, chosen: Settings, **options: Any) -> Claude:
    """A client of a scripted server."""
    http_client = httpx2.AsyncClient(transport=ScriptedTransport(handler))
    return Claude(chosen, http_client=http_client, **options)


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def start(**usage: int) -> bytes:
    message = {"id": "m", "model": "claude-real", "content": [], "usage": usage}
    return event("message_start", message=message)


def text(piece: Any) -> bytes:
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})


def end(stop_reason: str | None = "end_turn", **usage: int) -> bytes:
    return event("message_delta", delta={"stop_reason": stop_reason}, usage=usage)


STOP = event("message_stop")
WHOLE = (
    start(input_tokens=7, output_tokens=1),
    text("Par"),
    text("is"),
    end(output_tokens=3),
    STOP,
)


def stream(*parts: bytes | Exception) -> Handler:
    """A server that answers 200 and these bytes; an exception breaks the connection."""

    async def body() -> AsyncIterator[bytes]:
        for part in parts:
            if isinstance(part, Exception):
                raise part
            yield part

    headers = {"content-type": "text/event-stream"}
    return lambda _: httpx2.Response(200, headers=headers, content=body())


def status(code: int, document: object = None, **headers: str) -> Handler:
    if not isinstance(document, str):
        document = json.dumps(document)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: httpx2.Response(code, headers=named, content=document)


def api_error(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


def converse(
    handler: Handler, request: Generate | None = None, chosen: Settings | None = None
) -> tuple[Replies, list[float], Done | Failed]:
    """One question to a scripted server: what came, the waits, and how it ended."""
    request = request or Generate("r1", (ChatMessage("user", "Where is the Louvre?"),))
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def run() -> tuple[Replies, list[float], Done | Failed]:
        client = make_client(
            handler, chosen or settings(), clock=Clock(), sleep=sleep, chance=lambda: 1.0
        )
        replies: Replies = []
        try:
            async with asyncio.timeout(LIMIT_S):
                ended = await client.answer(request, replies.append, arrived_s=99.0)
                return replies, waits, ended
        finally:
            await client.close()

    return asyncio.run(run())


def ask(
    handler: Handler, request: Generate | None = None, base_url: str = "", **cloud: Any
) -> Outcome:
    """One question to a scripted server: the tokens, and how it ended."""
    replies, _, ended = converse(handler, request, settings(base_url=base_url, **cloud))
    return [reply for reply in replies if isinstance(reply, Token)], ended


class Clock:
    """One second later at each look."""

    def __init__(self) -> None:
        self._now_s = 100.0

    def __call__(self) -> float:
        self._now_s += 1
        return self._now_s


def failure(*arguments: Any, **settings: Any) -> Failed:
    _, outcome = ask(*arguments, **settings)
    assert isinstance(outcome, Failed), outcome
    assert outcome.request_id == "r1"
    assert KEY not in outcome.message + outcome.hint
    return outcome


def done(*arguments: Any, **settings: Any) -> Done:
    _, outcome = ask(*arguments, **settings)
    assert isinstance(outcome, Done), outcome
    return outcome
