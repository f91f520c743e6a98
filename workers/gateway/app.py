"""The application: routes, and the way of a question from its request to its answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from shammah.bus.endpoints import Endpoints
from shammah.bus.messages import ChatMessage, Failed, Sampling
from shammah.chat.conversation import Turn
from shammah.privacy import Mark, told_beside
from shammah.router.question import estimate_tokens
from shammah.router.route import RouteDecision
from shammah.settings.model import Settings
from workers.gateway import asking, page
from workers.gateway.access import Access, dialect_of
from workers.gateway.anthropic_messages import MessagesApi, read_messages, read_tools
from workers.gateway.api import Api, Writer, encode, failed
from workers.gateway.asking import Asked, Wishes, read_wishes
from workers.gateway.desk import Desk, Heard, Piece, Remark, Reply
from workers.gateway.fields import Fields
from workers.gateway.openai_chat import ChatApi, CompletionApi
from workers.gateway.openai_responses import ResponsesApi
from workers.gateway.refusals import RETRY_S, Dialect, RefusedError, describe, invalid, refusal_of
from workers.logs import describe as describe_error

log = logging.getLogger(__name__)

BODY_BYTES = 16 * 1024 * 1024
"""Twice what the bus carries: JSON may escape what is not ASCII."""
BODIES_BYTES = 8 * BODY_BYTES
"""What all requests that are still coming may hold together; more get 429."""
BODY_S = 60.0
"""How long a body may take to arrive."""
IDLE_S = 10.0
"""After so long without a piece of a stream, something is sent all the same."""

PATHS: dict[str, Api] = {
    "/v1/chat/completions": ChatApi(),
    "/v1/completions": CompletionApi(),
    "/v1/messages": MessagesApi(),
    "/v1/responses": ResponsesApi(),
}
STOPPED = RefusedError(503, "gateway_stopped", "The endpoint was stopped.", retry_s=5)


def application(settings: Settings, token: str, desk: Desk, endpoints: Endpoints) -> Starlette:
    """The endpoint, for clients that know ``token``."""
    ways, origins = Ways(settings, desk), settings.gateway.origins
    return Starlette(
        routes=[
            *(Route(path, ways.ask, methods=["POST"]) for path in PATHS),
            Route("/v1/messages/count_tokens", ways.count, methods=["POST"]),
            Route("/v1/models", ways.list_models),
            Route("/v1/models/{name:path}", ways.show_model),
            *page.routes(settings.home, endpoints, desk.why),
            Route("/v1/embeddings", ways.refuse_embeddings, methods=["POST"]),
        ],
        middleware=[
            Middleware(Access, token, origins),
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["shammah-target", "shammah-reason", "shammah-private"],
            ),
        ],
        exception_handlers={404: refuse_path, 405: refuse_path, Exception: excuse},
    )


class Ways:
    """What is done at each path."""

    def __init__(self, settings: Settings, desk: Desk) -> None:
        self._settings = settings
        self._desk = desk
        self._coming = 0  # bytes of bodies

    async def ask(self, request: Request) -> Response:
        api = PATHS[request.url.path]
        try:
            asked = api.read(await self._read(request))
            return Answer(self._desk, api, asked, read_wishes(request.headers))
        except RefusedError as refused:
            return refusal(refused, api.dialect)

    async def count(self, request: Request) -> Response:
        try:
            fields = await self._read(request)
            messages, (tools, _) = read_messages(fields), read_tools(fields)
        except RefusedError as refused:
            return refusal(refused, Dialect.ANTHROPIC)
        offered = [ChatMessage("system", text) for text in told_beside(Sampling(tools=tools))]
        return JSONResponse({"input_tokens": estimate_tokens((*messages, *offered))})

    async def list_models(self, request: Request) -> Response:
        dialect = _dialect(request)
        found = [_describe_model(*one, dialect) for one in self._models()]
        if dialect is Dialect.OPENAI:
            said: dict[str, object] = {"object": "list", "data": found}
            if "client_version" in request.query_params:
                said["models"] = []  # which Codex reads instead, and complains if there is no list
            return JSONResponse(said)
        ends = {"first_id": found[0]["id"], "last_id": found[-1]["id"]}
        return JSONResponse({"data": found, "has_more": False, **ends})

    async def show_model(self, request: Request) -> Response:
        name, dialect = request.path_params["name"], _dialect(request)
        what = dict(self._models()).get(name)
        if what is None:
            return refusal(RefusedError(404, "model_not_found", "There is no such model."), dialect)
        return JSONResponse(_describe_model(name, what, dialect))

    async def refuse_embeddings(self, request: Request) -> Response:
        what = "No embeddings are made here: the models only answer."
        return refusal(RefusedError(400, "embeddings_unsupported", what), Dialect.OPENAI)

    async def _read(self, request: Request) -> Fields:
        """The fields of a request.

        Raises:
            RefusedError: it is too long, does not come, or is no JSON object.
        """
        body = bytearray()
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > BODY_BYTES:
            raise _too_large()
        try:
            async with asyncio.timeout(BODY_S):
                async for chunk in request.stream():
                    body += chunk
                    self._coming += len(chunk)
                    if len(body) > BODY_BYTES:
                        raise _too_large()
                    if self._coming > BODIES_BYTES:
                        what = "Too many long requests are coming."
                        raise RefusedError(429, "busy", what, retry_s=RETRY_S)
            return Fields(json.loads(body))
        except TimeoutError:
            what = f"The body took longer than {BODY_S:g} s."
            raise RefusedError(408, "body_slow", what) from None
        except ClientDisconnect:
            raise RefusedError(408, "client_left", "The client has left.") from None
        except (ValueError, RecursionError):
            raise invalid("The body is not JSON.") from None
        finally:
            self._coming -= len(body)

    def _models(self) -> list[tuple[str, str]]:
        return asking.models(self._settings, self._desk.local_model)


async def refuse_path(request: Request, error: Exception) -> Response:
    what = f"Nothing is at {request.url.path!r:.60} for {request.method}."
    return refusal(RefusedError(404, "not_found", what), _dialect(request))


async def excuse(request: Request, error: Exception) -> Response:
    return refusal(_broken(error), _dialect(request))


def _broken(error: Exception) -> RefusedError:
    log.error("a request failed: %s", describe_error(error))
    return RefusedError(500, "internal", "The gateway failed; see its log file.")


def _dialect(request: Request) -> Dialect:
    return dialect_of(request.url.path, request.headers)


def _too_large() -> RefusedError:
    return RefusedError(413, "body_too_large", f"The body is longer than {BODY_BYTES:,} bytes.")


def refusal(
    refused: RefusedError, dialect: Dialect, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer to what gets none."""
    said = {**(headers or {}), **refused.headers}
    if refused.status in (408, 413, 429):
        said["connection"] = "close"  # the rest of its body is not read
    return JSONResponse(describe(refused, dialect), refused.status, said)


@dataclass(slots=True)
class _Course:
    """What is known of an answer so far; `headers` say it to the client."""

    ignored: tuple[str, ...]
    number: str = field(default_factory=lambda: os.urandom(12).hex())
    decision: RouteDecision | None = None
    mark: Mark = Mark()  # noqa: RUF009 - frozen
    remarks: list[str] = field(default_factory=list)

    def take(self, heard: Heard | None) -> None:
        match heard:
            case RouteDecision():
                self.decision = heard
            case Mark():
                self.mark = heard
            case Remark(text):
                self.remarks.append(text)

    @property
    def headers(self) -> dict[str, str]:
        said = {"request-id": f"req_{self.number}", "x-request-id": f"req_{self.number}"}
        if self.decision is not None:
            said["shammah-target"] = self.decision.answerer
            said["shammah-reason"] = self.decision.reason.value
        if self.mark.private:
            said["shammah-private"] = self.mark.why or "as you said"
        if self.remarks:
            said["shammah-notice"] = " ".join(self.remarks)
        if self.ignored:
            said["shammah-ignored"] = ", ".join(self.ignored)
        return {name: _header(value) for name, value in said.items()}


def _header(value: str) -> str:
    return value.encode("ascii", "replace").decode().replace("\n", " ").replace("\r", " ")


class Answer(Response):
    """The answer to a question, whole or as it comes. A client that leaves ends it."""

    def __init__(self, desk: Desk, api: Api, asked: Asked, wishes: Wishes) -> None:
        self.background = None
        self._desk = desk
        self._api = api
        self._asked = asked
        self._wishes = wishes
        self._course = _Course(asked.ignored)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_gone(receive, self._serve(scope, receive, send))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        course = self._course
        writer = self._api.writer(self._asked, course.number, int(time.time()))
        begun = False

        async def say(text: str) -> None:
            nonlocal begun
            if not begun:
                begun = True
                await send(_start(course.headers))
            if text:
                await send(_chunk(text))

        try:
            async with self._desk.ask(self._asked, self._wishes, course.number) as reply:
                if self._asked.stream:
                    await self._stream(reply, writer, say)
                    await send({"type": "http.response.body", "body": b""})
                else:
                    said = encode(await self._whole(reply, writer))
                    answer = Response(said, 200, course.headers, "application/json")
                    await answer(scope, receive, send)
            return
        except RefusedError as error:
            refused = error
        except Exception as error:
            refused = _broken(error)
        if begun:
            await send(_chunk(failed(refused, self._api.dialect)))
            await send({"type": "http.response.body", "body": b""})
        else:
            refusing = refusal(refused, self._api.dialect, course.headers)
            await refusing(scope, receive, send)

    async def _whole(self, reply: Reply, writer: Writer) -> dict[str, object]:
        while True:
            heard = await reply.next()
            self._course.take(heard)
            if isinstance(heard, Turn):
                _check(heard)
                return writer.whole(heard, self._model(reply))

    async def _stream(
        self, reply: Reply, writer: Writer, say: Callable[[str], Awaitable[None]]
    ) -> None:
        begun = False
        while True:
            heard = await reply.next(IDLE_S)
            self._course.take(heard)
            if heard is None:
                await say(writer.idle())
            if not isinstance(heard, Piece | Turn):
                continue
            if isinstance(heard, Turn):
                _check(heard)
            text = "" if begun else writer.begin(self._model(reply))
            begun = True
            if isinstance(heard, Turn):
                await say(text + writer.end(heard))
                return
            write = writer.thought if heard.thought else writer.piece
            await say(text + write(heard.text))

    def _model(self, reply: Reply) -> str:
        decision = self._course.decision
        return (reply.source(decision).model if decision else "") or self._asked.model


def _check(turn: Turn) -> None:
    """Refuse what is no answer."""
    if turn.finish == "cancelled":
        raise STOPPED
    if isinstance(turn.end, Failed):
        raise refusal_of(turn.end)


async def unless_gone(receive: Receive, work: Awaitable[None]) -> None:
    """Await ``work``, whose request has been read; cancel it when its client leaves."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_leave(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
        with contextlib.suppress(asyncio.CancelledError, ClientDisconnect):
            await working


async def _leave(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(headers: Mapping[str, str]) -> Message:
    said = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store"}
    raw = [(name.encode(), value.encode()) for name, value in {**said, **headers}.items()]
    return {"type": "http.response.start", "status": 200, "headers": raw}


def _chunk(text: str) -> Message:
    return {
        "type": "http.response.body",
        "body": text.encode("utf-8", "replace"),
        "more_body": True,
    }


def _describe_model(name: str, what: str, dialect: Dialect) -> dict[str, object]:
    if dialect is Dialect.ANTHROPIC:
        since = "1970-01-01T00:00:00Z"
        return {"type": "model", "id": name, "display_name": f"{name}: {what}", "created_at": since}
    return {"id": name, "object": "model", "created": 0, "owned_by": "shammah"}
