"""The client of a server that speaks OpenAI's API: `workers.openai.chat_server`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import httpx2
import pytest

from shammah.bus.messages import ChatMessage, Done, Failed, Generate, Ready, Sampling, Token
from shammah.errors import ShammahError
from shammah.settings.model import ServerSettings
from workers.openai.chat_server import ChatServer

Handler = Callable[[httpx2.Request], httpx2.Response]

URL = "http://127.0.0.1:8000/v1"
QUESTION = ChatMessage("user", "Where is the Eiffel Tower?")


def server(handler: Handler, lost: list[str] | None = None, **settings: str) -> ChatServer:
    client = httpx2.AsyncClient(transport=httpx2.MockTransport(handler))
    fall = lost if lost is not None else []
    return ChatServer(
        "box",
        ServerSettings(URL, **settings),
        role="inference",
        lost=lambda: fall.append("lost"),
        http_client=client,
    )


def event(**document: object) -> str:
    return f"data: {json.dumps(document)}\n\n"


def piece(text: str) -> str:
    return event(choices=[{"delta": {"content": text}}], model="real")


END = event(choices=[{"delta": {}, "finish_reason": "stop"}])


def answer(
    body: str | Handler, *messages: ChatMessage, lost: list[str] | None = None, **settings: str
) -> tuple[str, Done | Failed]:
    """The text that was sent on, and the end."""
    tokens: list[Token] = []

    async def ask() -> Done | Failed:
        handler = body if callable(body) else lambda request: httpx2.Response(200, text=body)
        asked = server(handler, lost, **settings)
        request = Generate("r", (QUESTION, *messages))
        ended = await asked.answer(request, tokens.append, 0.0)
        await asked.close()
        return ended

    ended = asyncio.run(ask())
    return "".join(one.text for one in tokens if not one.reasoning), ended


def find(handler: Handler, **settings: str) -> Ready:
    async def look() -> Ready:
        asked = server(handler, **settings)
        try:
            return await asked.find()
        finally:
            await asked.close()

    return asyncio.run(look())


def models(*names: str) -> Handler:
    return lambda request: httpx2.Response(200, json={"data": [{"id": one} for one in names]})


def test_an_answer_comes_in_pieces_and_with_its_usage() -> None:
    usage = event(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 2})
    text, ended = answer(piece("In ") + piece("Paris.") + END + usage + "data: [DONE]\n\n")
    assert text == "In Paris."
    assert isinstance(ended, Done)
    assert (ended.finish_reason, ended.provenance.model) == ("stop", "real")
    assert (ended.usage.input_tokens, ended.usage.output_tokens) == (9, 2)
    assert (ended.provenance.role, ended.provenance.engine) == ("inference", "server")


def test_an_answer_that_has_begun_is_joined() -> None:
    asked: list[object] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        asked.append(json.loads(request.content)["messages"][-1]["role"])
        return httpx2.Response(200, text=piece("It stands in Par") + piece("is.") + END)

    begun = ChatMessage("assistant", "It stands in")
    assert answer(handler, begun)[0] == " Paris."
    assert asked == ["user"], "servers differ in whether they continue the assistant's message"


def test_a_provider_is_sent_nothing_that_it_may_refuse() -> None:
    settings = ServerSettings("https://api.openai.com/v1", trust="cloud", model="m")
    body, most = ChatServer("far", settings, role="cloud", most=9).make_body(
        Generate("r", (QUESTION,))
    )
    assert most == body["max_completion_tokens"] == 9
    assert not {"chat_template_kwargs", "max_tokens"} & body.keys()


def test_the_key_is_sent_and_never_repeated() -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        assert request.headers["authorization"] == "Bearer sk-secret"
        return httpx2.Response(500, json={"error": {"message": "no luck with sk-secret"}})

    _, ended = answer(handler, key="sk-secret")
    assert isinstance(ended, Failed)
    assert "sk-secret" not in ended.message
    assert "no luck with ***" in ended.message


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (piece("In ") + "data: [DONE]\n\n", "server_interrupted"),
        (piece("In ") + "data: {}}\n\n", "server_malformed"),
        (piece("In ") + event(error={"message": "boom"}), "server_refused"),
        (piece("In ") + 'error: {"message": "boom"}\n\n', "server_refused"),
    ],
)
def test_what_breaks_off_is_a_failure_after_the_text_so_far(body: str, code: str) -> None:
    text, ended = answer(body)
    assert (text, isinstance(ended, Failed) and ended.code) == ("In ", code)


@pytest.mark.parametrize(
    ("status", "words", "code"),
    [
        (400, "This model's maximum context length is 2048 tokens", "context_too_long"),
        (400, "the request exceeds the available context size", "context_too_long"),
        (400, "unknown field", "server_refused"),
        (401, "bad key", "server_refused"),
        (404, "no such model", "server_refused"),
        (429, "slow down", "server_busy"),
        (503, "Loading model", "server_busy"),
        (500, "oops", "server_error"),
        (501, "not here", "server_refused"),
    ],
)
def test_refusals_by_status(status: int, words: str, code: str) -> None:
    refusal = httpx2.Response(status, json={"error": {"message": words}})
    _, ended = answer(lambda request: refusal)
    assert isinstance(ended, Failed)
    assert ended.code == code
    assert ended.hint


def test_an_error_page_is_told_by_its_status_alone() -> None:
    page = httpx2.Response(404, html="<!DOCTYPE HTML><h1>Nothing matches the URI</h1>")
    _, ended = answer(lambda request: page)
    assert isinstance(ended, Failed)
    assert ended.message == (
        "The server box (127.0.0.1:8000) did not accept the question (404: Not Found)."
    )


@pytest.mark.parametrize(
    ("error", "code", "lost"),
    [
        (httpx2.ConnectError("refused"), "server_unreachable", ["lost"]),
        (httpx2.ConnectTimeout("late"), "server_unreachable", ["lost"]),
        (httpx2.ReadError("reset"), "server_interrupted", ["lost"]),
        (httpx2.ReadTimeout("silent"), "server_interrupted", ["lost"]),
    ],
)
def test_a_server_that_has_gone_is_told_of(error: Exception, code: str, lost: list[str]) -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        raise error

    told: list[str] = []
    _, ended = answer(handler, lost=told)
    assert (isinstance(ended, Failed) and ended.code, told) == (code, lost)


def test_a_schema_that_the_server_ignores_is_a_failure_without_text() -> None:
    tokens: list[Token] = []

    async def ask() -> Done | Failed:
        body = piece("The") + piece(" city") + END
        asked = server(lambda request: httpx2.Response(200, text=body))
        request = Generate("r", (QUESTION,), Sampling(schema='{"type": "object"}'))
        return await asked.answer(request, tokens.append, 0.0)

    ended = asyncio.run(ask())
    assert (isinstance(ended, Failed) and ended.code, tokens) == ("schema_not_enforced", [])


@pytest.mark.parametrize(
    ("arguments", "reason", "found"),
    [
        ('{"a": 1}', "tool_calls", "tool_call"),
        ('{"a": 1}', "stop", "tool_call"),  # as OpenAI ends a call that was asked for by its name
        ('{"a": ', "length", "length"),
        ('{"a": ', "tool_calls", "server_malformed"),
        ("[1]", "stop", "server_malformed"),
    ],
)
def test_calls_are_whole_or_there_are_none(arguments: str, reason: str, found: str) -> None:
    called = {"index": 0, "id": "c", "function": {"name": "t", "arguments": arguments}}
    choice = {"delta": {"tool_calls": [called]}, "finish_reason": reason}
    _, ended = answer(event(choices=[choice]))
    if isinstance(ended, Failed):
        assert ended.code == found
    else:
        assert ended.finish_reason == found
        assert [one.arguments for one in ended.tool_calls] == [arguments] * (found == "tool_call")


def test_a_stop_text_that_the_server_sends_is_cut_off() -> None:
    tokens: list[Token] = []

    async def ask() -> Done | Failed:
        body = piece("It is in Pa") + piece("ris, of") + piece(" course") + END
        asked = server(lambda request: httpx2.Response(200, text=body))
        request = Generate("r", (QUESTION,), Sampling(stop=("Paris",)))
        return await asked.answer(request, tokens.append, 0.0)

    ended = asyncio.run(ask())
    assert isinstance(ended, Done)
    assert ended.stop == "Paris"
    assert "".join(token.text for token in tokens) == "It is in "


def test_a_cancel_closes_the_connection() -> None:
    closed: list[bool] = []

    class Endless(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield piece("In ").encode()
            await asyncio.Event().wait()

        async def aclose(self) -> None:
            closed.append(True)

    async def ask() -> Done | Failed:
        asked = server(lambda request: httpx2.Response(200, stream=Endless()))
        begun = asyncio.Event()
        request = Generate("r", (QUESTION,))
        task = asyncio.create_task(asked.answer(request, lambda token: begun.set(), 0.0))
        await begun.wait()
        task.cancel()
        return await task

    ended = asyncio.run(ask())
    assert isinstance(ended, Done)
    assert (ended.finish_reason, closed) == ("cancelled", [True])


def test_the_first_model_is_taken_unless_one_is_named() -> None:
    assert find(models("a", "b")).model == "a"
    assert find(models("a", "b"), model="b").model == "b"


def test_a_model_may_be_served_that_is_not_listed() -> None:
    """`transformers serve` lists what the Hub's cache has."""
    assert find(models(), model="/models/own").model == "/models/own"
    assert find(models("a"), model="/models/own").model == "/models/own"


@pytest.mark.parametrize(
    ("handler", "settings", "code"),
    [
        (models("a"), {"model": "c"}, "model_unknown"),
        (models(), {}, "model_unknown"),
        (lambda request: httpx2.Response(404, text="Not Found"), {}, "server_refused"),
        (lambda request: httpx2.Response(200, text="<html>"), {}, "server_malformed"),
        (lambda request: httpx2.Response(200, json={"models": []}), {}, "server_malformed"),
    ],
)
def test_a_server_without_the_model_is_refused(
    handler: Handler, settings: dict[str, str], code: str
) -> None:
    with pytest.raises(ShammahError) as caught:
        find(handler, **settings)
    assert caught.value.code == code
