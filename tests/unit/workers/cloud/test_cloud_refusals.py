"""What a server can do wrong or refuse, through the real SDK: each ends in one clear `Failed`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest

from shammah.bus.messages import Done, Failed, Generate
from tests.fakes.scripted_api import (
    KEY,
    STOP,
    WHOLE,
    api_error,
    ask,
    end,
    event,
    failure,
    start,
    status,
    stream,
    text,
)


@pytest.mark.parametrize(
    ("code", "kind", "expected"),
    [
        (400, "invalid_request_error", "cloud_bad_request"),
        (401, "authentication_error", "cloud_key_rejected"),
        (402, "billing_error", "cloud_billing"),
        (307, "moved", "cloud_redirected"),
        (407, "proxy_error", "cloud_unreachable"),
        (408, "timeout_error", "cloud_timeout"),
        (409, "conflict_error", "cloud_conflict"),
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
def test_a_refusal(code: int, kind: str, expected: str) -> None:
    refused = failure(status(code, api_error(kind, "Its own text.")))
    assert refused.code == expected
    assert refused.hint
    assert f"({code}" in refused.message
    assert ("Its own text" in refused.message) == (code != 401)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("overloaded_error", "cloud_overloaded"),
        ("rate_limit_error", "cloud_rate_limited"),
        ("authentication_error", "cloud_key_rejected"),
        ("api_error", "cloud_server_error"),
        ("brand_new_error", "cloud_server_error"),
    ],
)
def test_an_error_event_in_the_middle_of_an_answer(kind: str, expected: str) -> None:
    tokens, outcome = ask(stream(start(), text("a"), event("error", **api_error(kind, "Sorry"))))
    assert [token.text for token in tokens] == ["a"]
    assert isinstance(outcome, Failed)
    assert outcome.code == expected


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
        ("1e308", "Ask again in a few days."),
        ("0.2", "Ask again in 1 s."),
        ("-3", "Ask again in 1 s."),
        ("Thu, 01 Jan 1970 00:00:00 GMT", "Ask again in 1 s."),
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


@pytest.mark.parametrize(
    "parts",
    [
        (b"data: ", *[b"a" * 64 * 1024] * 17),
        (b"data: a\n" * 11_000,),
        (WHOLE[0], b"data: a\n" * 6_000, b"data: a\n" * 6_000),
    ],
)
def test_an_event_without_end_is_not_kept(parts: tuple[bytes, ...]) -> None:
    tokens, outcome = ask(stream(*parts, *WHOLE))
    assert tokens == []
    assert isinstance(outcome, Failed)
    assert outcome.code == "cloud_malformed"


def test_the_events_of_a_long_answer_are_no_event_without_end() -> None:
    many = [text("word " * 1000).replace(b"\n", line) for line in (b"\n", b"\r\n") * 300]
    tokens, outcome = ask(stream(start(), *many, end(), STOP))
    assert (len(tokens), type(outcome)) == (600, Done)


@pytest.mark.parametrize("encoding", ["gzip", "br", "unheard-of"])
def test_a_compressed_answer_was_not_asked_for(encoding: str) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        assert request.headers["accept-encoding"] == "identity"
        headers = {"content-type": "text/event-stream", "content-encoding": encoding}
        return httpx2.Response(200, headers=headers, content=_bytes(b"not compressed"))

    assert failure(answer).code == "cloud_malformed"


async def _bytes(content: bytes) -> AsyncIterator[bytes]:
    yield content
