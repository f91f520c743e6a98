"""Answers through the real SDK over a scripted transport: no socket, no server."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2
import pytest

from shammah.bus.messages import (
    ChatMessage,
    Done,
    Failed,
    Generate,
    Provenance,
    Sampling,
    Token,
    Usage,
)
from shammah.config import CloudSettings
from workers.cloud import claude
from workers.cloud.claude import Claude

KEY = "sk-secret-0123456789"
LIMIT_S = 10.0

Handler = Callable[[httpx2.Request], Any]
Outcome = tuple[list[Token], Done | Failed]


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


def ask(
    handler: Handler, request: Generate | None = None, base_url: str = "", **settings: Any
) -> Outcome:
    """One question to a scripted server: the tokens, and how it ended."""
    request = request or Generate("r1", (ChatMessage("user", "Where is the Louvre?"),))

    async def run() -> Outcome:
        http_client = httpx2.AsyncClient(transport=httpx2.MockTransport(handler))
        one = CloudSettings(api_key=KEY, base_url=base_url, **{"model": "claude-set", **settings})
        client = Claude(one, http_client=http_client, clock=Clock())
        tokens: list[Token] = []
        try:
            async with asyncio.timeout(LIMIT_S):
                return tokens, await client.answer(request, tokens.append, arrived_s=99.0)
        finally:
            await client.close()

    return asyncio.run(run())


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


# --- a whole answer -------------------------------------------------------------------------


def test_an_answer() -> None:
    tokens, outcome = ask(stream(*WHOLE))
    assert tokens == [Token("r1", 1, "Par"), Token("r1", 2, "is")]
    assert isinstance(outcome, Done)
    assert outcome.finish_reason == "stop"
    assert outcome.usage == Usage(7, 3)
    assert outcome.provenance == Provenance("cloud", "claude-real", engine="anthropic")
    assert outcome.notices == ()


def test_times_count_from_the_arrival() -> None:
    timings = done(stream(*WHOLE)).timings
    # The clock is looked at when the work begins (101), at each piece (102, 104), for the
    # first text (103) and at the end (105); the request arrived at 99.
    assert (timings.queue_s, timings.ttft_s, timings.total_s) == (2.0, 4.0, 6.0)
    assert timings.decode_tokens_per_second == 1.0  # two tokens after the first, in 2 s
    assert timings.prefill_tokens_per_second == 0.0


def test_one_piece_has_no_rate() -> None:
    timings = done(stream(start(), text("Paris"), end(output_tokens=3), STOP)).timings
    assert timings.decode_tokens_per_second == 0.0


def test_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Key and address are ours, whatever the environment says."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-other")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "other")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "https://other.example")
    monkeypatch.setenv("ANTHROPIC_PROFILE", "other")
    sent: list[httpx2.Request] = []

    def handler(request: httpx2.Request) -> Any:
        sent.append(request)
        return stream(*WHOLE)(request)

    messages = (ChatMessage("system", "Be brief."), ChatMessage("user", "Hi"))
    request = Generate("r1", messages, Sampling(temperature=0.5), max_new_tokens=9)
    notices = done(handler, request).notices
    assert notices == ("Claude does not take a temperature; it was ignored.",)
    assert str(sent[0].url) == "https://api.anthropic.com/v1/messages"
    assert sent[0].headers["authorization"] == f"Bearer {KEY}"
    assert json.loads(sent[0].content) == {
        "model": "claude-set",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "Hi"}],
        "system": "Be brief.",
        "stream": True,
    }
    timeout = sent[0].extensions["timeout"]
    assert timeout == {"connect": 5.0, "read": 60.0, "write": 60.0, "pool": 5.0}


def test_a_custom_server_is_sent_the_sampling() -> None:
    sent: list[httpx2.Request] = []

    def handler(request: httpx2.Request) -> Any:
        sent.append(request)
        return stream(*WHOLE)(request)

    request = Generate("r1", (ChatMessage("user", "Hi"),), Sampling(temperature=0.0, top_k=3))
    assert done(handler, request, "http://127.0.0.1:1/anthropic").notices == ()
    body = json.loads(sent[0].content)
    assert (body["temperature"], body["top_k"]) == (0.0, 3)
    assert "system" not in body
    assert str(sent[0].url) == "http://127.0.0.1:1/anthropic/v1/messages"


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("tool_use", "stop"),
        ("pause_turn", "stop"),
        ("something new", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "refusal"),
    ],
)
def test_finish_reasons(stop_reason: str, finish_reason: str) -> None:
    assert done(stream(start(), text("a"), end(stop_reason), STOP)).finish_reason == finish_reason


def test_usage_counts_cached_input_and_keeps_what_a_later_event_leaves_out() -> None:
    first = start(input_tokens=5, cache_read_input_tokens=90, output_tokens=1)
    assert done(stream(first, text("a"), end(output_tokens=40), STOP)).usage == Usage(95, 40)


def test_thinking_and_unknown_events_are_no_text() -> None:
    thinking = {"type": "thinking_delta", "thinking": "Hm."}
    tokens, outcome = ask(
        stream(
            start(),
            event("ping"),
            event("content_block_start", index=0, content_block={"type": "thinking"}),
            event("content_block_delta", index=0, delta=thinking),
            event("brand_new", anything=[1]),
            event("content_block_start", index=1, content_block={"type": "text", "text": "A"}),
            event("content_block_delta", index=1, delta={"type": "brand_new_delta"}),
            text("b"),
            end(),
            STOP,
        )
    )
    assert [token.text for token in tokens] == ["A", "b"]
    assert isinstance(outcome, Done)


def test_half_characters_are_joined_or_replaced() -> None:
    """A server that cuts at UTF-16 units: `json.dumps` writes such halves as they are."""
    pieces = (text("a\ud83d"), text("\ude00b"), text("\udc00"), text("é\ud83d"), text("c"))
    tokens, _ = ask(stream(start(), *pieces, end(), STOP))
    assert [token.text for token in tokens] == ["a", "😀b", "\ufffd", "é", "\ufffdc"]


def test_an_answer_without_text() -> None:
    tokens, outcome = ask(stream(start(), end(), STOP))
    assert tokens == []
    assert isinstance(outcome, Done)
    assert outcome.timings.ttft_s == 0.0


@pytest.mark.parametrize(
    "tail", [(), (httpx2.RemoteProtocolError("cut"),), (b"event: x\ndata: {\n\n",)]
)
def test_what_breaks_after_the_stop_reason_is_only_the_connection(tail: Any) -> None:
    assert done(stream(start(), text("a"), end(), *tail)).finish_reason == "stop"


def test_a_stream_that_does_not_end_after_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claude, "DRAIN_S", 0.01)

    async def body() -> AsyncIterator[bytes]:
        for part in WHOLE:
            yield part
        await asyncio.Event().wait()

    assert done(lambda _: httpx2.Response(200, content=body())).finish_reason == "stop"


# --- failures -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind", "expected"),
    [
        (400, "invalid_request_error", "cloud_bad_request"),
        (401, "authentication_error", "cloud_key_rejected"),
        (402, "billing_error", "cloud_billing"),
        (403, "permission_error", "cloud_key_rejected"),
        (404, "not_found_error", "cloud_model_unknown"),
        (413, "request_too_large", "cloud_too_large"),
        (418, "brand_new_error", "cloud_bad_request"),
        (429, "rate_limit_error", "cloud_rate_limited"),
        (500, "api_error", "cloud_server_error"),
        (503, "api_error", "cloud_overloaded"),
        (529, "overloaded_error", "cloud_overloaded"),
    ],
)
def test_a_status_and_the_same_error_inside_a_stream(code: int, kind: str, expected: str) -> None:
    document = api_error(kind, "Its own text.")
    refused = failure(status(code, document))
    assert refused.code == expected
    assert refused.hint
    assert f"({code}" in refused.message
    assert ("Its own text" in refused.message) == (code != 401)
    if code != 418:  # a stream names the type alone
        broken = failure(stream(start(), text("a"), event("error", **document)))
        assert broken.code in (expected, "cloud_server_error" if code == 503 else expected)


def test_nothing_is_tried_twice() -> None:
    calls: list[httpx2.Request] = []

    def handler(request: httpx2.Request) -> Any:
        calls.append(request)
        return status(529, api_error("overloaded_error", "busy"))(request)

    failure(handler)
    assert len(calls) == 1


def test_an_unknown_model_is_named() -> None:
    told = failure(status(404, api_error("not_found_error", "model: x")), model="claude-typo")
    assert "'claude-typo'" in told.message
    assert "model under [cloud]" in told.hint
    custom = failure(status(404, "<html>"), base_url="http://127.0.0.1:1/v1")
    assert custom.message.startswith("The server at 127.0.0.1:1 does not know the model")
    assert "/v1" in custom.hint


@pytest.mark.parametrize(
    ("header", "hint"),
    [
        ("20", "Ask again in 20 s."),
        ("0.2", "Ask again in 1 s."),
        ("-3", "Ask again in 0 s."),
        ("Thu, 01 Jan 1970 00:00:00 GMT", "Ask again in 0 s."),
        ("nan", "Ask again in a moment."),
        ("soon", "Ask again in a moment."),
        ("", "Ask again in a moment."),
    ],
)
def test_retry_after_is_told(header: str, hint: str) -> None:
    told = failure(status(429, api_error("rate_limit_error", "slow"), retry_after=header))
    assert told.hint == hint


@pytest.mark.parametrize("body", ["", "<html>Bad gateway</html>", "[1]", '{"error": 5}', "null"])
def test_an_error_page_is_not_shown(body: str) -> None:
    assert failure(status(502, body)).message == "Claude failed (502)."


def test_the_servers_text_is_one_printable_line_of_bounded_length_without_the_key() -> None:
    own = f"bad\n\x1b[31mkey {KEY}\t" + "x" * 1000
    message = failure(status(400, api_error("invalid_request_error", own))).message
    assert message.startswith("Claude did not accept the question (400: bad [31mkey *** xxx")
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (httpx2.RemoteProtocolError("peer closed"), "cloud_interrupted"),
        (httpx2.ReadError("reset"), "cloud_interrupted"),
        (httpx2.ReadTimeout("silent"), "cloud_timeout"),
        (httpx2.DecodingError("gzip"), "cloud_interrupted"),
    ],
)
def test_a_connection_that_breaks_in_the_middle(error: Exception, code: str) -> None:
    tokens, outcome = ask(stream(start(), text("Par"), error))
    assert [token.text for token in tokens] == ["Par"]
    assert isinstance(outcome, Failed)
    assert outcome.code == code


@pytest.mark.parametrize(
    "parts", [(start(), text("a")), (start(), text("a"), end(None)), (start(), text("a"), STOP)]
)
def test_a_stream_without_a_stop_reason_is_truncated(parts: tuple[bytes, ...]) -> None:
    assert failure(stream(*parts)).code == "cloud_truncated"


@pytest.mark.parametrize(
    "part",
    [
        b"event: content_block_delta\ndata: {oops\n\n",
        b"event: content_block_delta\ndata: \xff\xfe\n\n",
        b"event: message_start\ndata: 5\n\n",
        b"event: message_start\ndata: null\n\n",
        b'event: message_start\ndata: {"type": "message_start"}\n\n',
        event("content_block_delta", index=0),
        event("message_delta", usage={}),
        text(5),
    ],
)
def test_a_malformed_event(part: bytes) -> None:
    assert failure(stream(start(), text("a"), part, end(), STOP)).code == "cloud_malformed"


@pytest.mark.parametrize("body", [b"", b"<html>Log in to the network</html>", b'{"a": 1}'])
def test_a_server_that_does_not_stream_messages(body: bytes) -> None:
    told = failure(stream(body), base_url="http://127.0.0.1:1")
    assert told.code == "cloud_malformed"
    assert "Messages API" in told.hint


def test_an_error_event_without_a_type() -> None:
    assert failure(stream(start(), b"event: error\ndata: oops\n\n")).code == "cloud_server_error"


def test_nothing_to_ask_is_said_without_asking() -> None:
    assert failure(pytest.fail, Generate("r1", ())).code == "cloud_bad_request"


# --- privacy --------------------------------------------------------------------------------


@pytest.fixture
def loud() -> Iterator[None]:
    """The SDK's own debug log, as ANTHROPIC_LOG=debug turns it on."""
    names = ("anthropic", "httpx2", "httpcore2")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.DEBUG)
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.usefixtures("loud")
def test_nothing_said_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ask(stream(*WHOLE))
    ask(stream(start(), text("Par"), b"event: x\ndata: {Paris\n\n"))
    ask(status(400, api_error("invalid_request_error", f"Louvre {KEY}")))
    for secret in (KEY, "Louvre", "Par"):
        assert secret not in caplog.text
