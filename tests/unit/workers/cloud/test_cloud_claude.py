"""Answers through the real SDK over a scripted transport: no socket, no server."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
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
from tests.fakes.scripted_api import (
    KEY,
    STOP,
    WHOLE,
    api_error,
    ask,
    done,
    end,
    event,
    make_client,
    settings,
    start,
    status,
    stream,
    text,
)
from workers.cloud import claude


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
    assert notices == ("Claude does not accept a temperature; it was ignored.",)
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
        ("tool_use", "tool_call"),
        ("pause_turn", "other"),
        ("something new", "other"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "refusal"),
    ],
)
def test_finish_reasons(stop_reason: str, finish_reason: str) -> None:
    assert done(stream(start(), text("a"), end(stop_reason), STOP)).finish_reason == finish_reason


def test_the_stop_text_that_ended_it_is_told() -> None:
    delta = {"stop_reason": "stop_sequence", "stop_sequence": "END"}
    ended = event("message_delta", delta=delta, usage={})
    assert done(stream(start(), text("a"), ended, STOP)).stop == "END"
    assert done(stream(start(), text("a"), end(), STOP)).stop == ""


def test_a_reason_that_is_not_known_is_named_without_what_a_terminal_would_obey() -> None:
    def notices(reason: str) -> tuple[str, ...]:
        return done(stream(start(), text("a"), end(reason), STOP)).notices

    what = "The server ended the answer for an unknown reason"
    assert notices("something new") == (f"{what} (something new).",)
    assert notices("n" * 999) == (f"{what} ({'n' * 40}).",)
    assert notices("\x1b[2J") == (f"{what} ().",)
    assert notices("end_turn") == ()


def test_usage_counts_cached_input_and_keeps_what_a_later_event_leaves_out() -> None:
    first = start(input_tokens=5, cache_read_input_tokens=90, output_tokens=1)
    usage = done(stream(first, text("a"), end(output_tokens=40), STOP)).usage
    assert usage == Usage(95, 40, reused_tokens=90)


@pytest.mark.parametrize("count", [10**400, -1, "many"])
def test_a_count_that_is_none_is_left_out(count: Any) -> None:
    ended = stream(start(input_tokens=7), text("a"), end(output_tokens=count), STOP)
    assert done(ended).usage == Usage(7)


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
    assert [(token.index, token.text) for token in tokens] == [(2, "A"), (4, "b")]
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


def test_a_cancelled_answer_has_used_at_least_what_came() -> None:
    waiting = asyncio.Event()
    steps: list[None] = []

    async def body() -> AsyncIterator[bytes]:
        for part in (start(input_tokens=7, output_tokens=1), text("a"), text("b"), text("c")):
            yield part
        waiting.set()
        await asyncio.Event().wait()

    async def run() -> Done | Failed:
        client = make_client(lambda _: httpx2.Response(200, content=body()), settings())
        request = Generate("r1", (ChatMessage("user", "Hi"),), Sampling(temperature=0.5))
        answer = client.answer(request, lambda _: None, 0.0, lambda: steps.append(None))
        task = asyncio.create_task(answer)
        await waiting.wait()
        task.cancel()
        outcome = await task
        await client.close()
        return outcome

    outcome = asyncio.run(run())
    assert isinstance(outcome, Done)
    assert (outcome.finish_reason, outcome.usage) == ("cancelled", Usage(7, 3))
    # Four pieces of the body, and message_start, which is progress though no text.
    assert len(steps) == 5
    assert outcome.notices == ("Claude does not accept a temperature; it was ignored.",)
    assert outcome.provenance.model == "claude-real"


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
