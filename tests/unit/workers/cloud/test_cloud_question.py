"""A question on its way: attempts, the ledger, the budget, the door. The real SDK, no socket."""

from __future__ import annotations

import asyncio
import hashlib
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from shammah.bus.messages import ChatMessage, Done, Failed, Generate, Retrying, Token, Usage
from shammah.privacy.ledger import UNKNOWN, Sent, read_ledger
from shammah.settings.model import PrivacySettings, Settings
from tests.fakes.scripted_api import (
    LIMIT_S,
    STOP,
    WHOLE,
    Handler,
    Replies,
    api_error,
    converse,
    end,
    event,
    make_client,
    settings,
    start,
    status,
    stream,
    text,
)
from workers.cloud import models
from workers.cloud.claude import Claude
from workers.cloud.models import Model, estimate_tokens, model_of
from workers.cloud.request import Peer, build_call
from workers.outgoing import retry
from workers.outgoing.errors import CallError
from workers.outgoing.retry import wait_s

OVERLOADED = status(529, api_error("overloaded_error", "busy"))
MESSAGES = (ChatMessage("user", "Where is the Louvre?"),)


def one_after_the_other(*handlers: Handler) -> Handler:
    rest = list(handlers)
    return lambda request: rest.pop(0)(request)


def ledger(chosen: Settings | None = None) -> list[Sent]:
    entries, damaged = read_ledger((chosen or settings()).home)
    assert damaged == 0
    return entries


# --- attempts -------------------------------------------------------------------------------


def test_what_passes_is_asked_again_and_told() -> None:
    handler = one_after_the_other(OVERLOADED, OVERLOADED, stream(*WHOLE))
    replies, waits, ended = converse(handler)
    assert isinstance(ended, Done)
    assert replies[:2] == [
        Retrying("r1", "Claude is overloaded", 1.0, 2, 5),
        Retrying("r1", "Claude is overloaded", 2.0, 3, 5),
    ]
    assert [reply.text for reply in replies[2:] if isinstance(reply, Token)] == ["Par", "is"]
    assert waits == [1.0, 2.0]
    assert [(one.attempt, one.outcome, one.status) for one in ledger()] == [
        (1, "cloud_overloaded", 529),
        (2, "cloud_overloaded", 529),
        (3, "answered", 200),
    ]
    assert {one.request_id for one in ledger()} == {"r1"}


def test_what_does_not_pass_ends_after_five_attempts() -> None:
    replies, waits, ended = converse(OVERLOADED)
    assert isinstance(ended, Failed)
    assert ended.code == "cloud_overloaded"
    assert waits == [1.0, 2.0, 4.0, 8.0]
    assert len(replies) == 4
    assert len(ledger()) == 5


@pytest.mark.parametrize("code", [400, 401, 402, 403, 404, 413, 422])
def test_what_would_fail_again_is_not_asked_again(code: int) -> None:
    replies, _, ended = converse(status(code, api_error("x", "y")))
    assert isinstance(ended, Failed)
    assert (replies, len(ledger())) == ([], 1)


@pytest.mark.parametrize(
    "parts",
    [
        (start(input_tokens=7), event("error", **api_error("overloaded_error", "busy"))),
        (start(), httpx2.ReadError("reset")),
        (start(),),
    ],
)
def test_a_stream_that_breaks_before_any_text_is_asked_again(parts: Any) -> None:
    replies, _, ended = converse(one_after_the_other(stream(*parts), stream(*WHOLE)))
    assert isinstance(ended, Done)
    assert isinstance(replies[0], Retrying)
    assert ended.usage == Usage(7, 3)


@pytest.mark.parametrize(
    "tail",
    [
        (event("error", **api_error("overloaded_error", "busy")),),
        (httpx2.ReadError("reset"),),
        (httpx2.ReadTimeout("silence"),),
        (),
    ],
)
def test_after_text_nothing_is_asked_again(tail: Any) -> None:
    """The text stays; what would come could not continue it."""
    replies, waits, ended = converse(stream(start(), text("Par"), *tail))
    assert isinstance(ended, Failed)
    assert ended.code.startswith("cloud_")
    assert replies == [Token("r1", 1, "Par")]
    assert waits == []


@pytest.mark.parametrize(
    ("headers", "waits"),
    [
        ({"retry_after": "3"}, [3.3]),
        ({"retry_after": "0.5"}, [0.55]),
        ({"retry_after_ms": "1500", "retry_after": "9"}, [1.65]),
        ({"retry_after": "Thu, 01 Jan 1970 00:00:00 GMT"}, [0.0]),
        ({"retry_after": "nonsense"}, [1.0]),
        ({"x_should_retry": "false"}, []),
        ({"retry_after": "61"}, []),
        ({"retry_after": "Fri, 01 Jan 2100 00:00:00 GMT"}, []),
        ({"retry_after": "4294967"}, []),
    ],
)
def test_what_the_server_says_of_another_attempt(
    headers: dict[str, str], waits: list[float]
) -> None:
    refusing = status(429, api_error("rate_limit_error", "slow"), **headers)
    _, waited, ended = converse(one_after_the_other(refusing, stream(*WHOLE)))
    assert waited == pytest.approx(waits)
    assert isinstance(ended, Done) == bool(waits)
    if not waits and "retry_after" in headers:
        assert isinstance(ended, Failed)
        assert ended.hint.startswith("Ask again in ")


def test_a_server_that_asks_for_another_attempt_gets_it() -> None:
    refusing = status(400, api_error("x", "y"), x_should_retry="true")
    _, waits, ended = converse(one_after_the_other(refusing, stream(*WHOLE)))
    assert isinstance(ended, Done)
    assert len(waits) == 1


@pytest.mark.parametrize("code", retry.ATTEMPTS)
def test_waits_grow_and_stay_within_bounds(code: str) -> None:
    error = CallError(code, "m")
    shortest = [wait_s(error, n, 0.0) for n in range(1, 12)]
    longest = [wait_s(error, n, 1.0) for n in range(1, 12)]
    allowed = retry.ATTEMPTS[code] - 1
    assert shortest[allowed:] == longest[allowed:] == [None] * (11 - allowed)
    for low, high in zip(shortest[:allowed], longest[:allowed], strict=True):
        assert low is not None
        assert high is not None
        assert 0 < low == high / 2 <= retry.LONGEST_WAIT_S


async def _asked(client: Claude, request: Generate, replies: Replies) -> Done | Failed:
    async with asyncio.timeout(LIMIT_S):
        return await client.answer(request, replies.append, arrived_s=0.0)


def test_a_cancel_while_waiting_for_the_next_attempt() -> None:
    async def run() -> tuple[Replies, Done | Failed]:
        waiting = asyncio.Event()

        async def sleep(_seconds: float) -> None:
            waiting.set()
            await asyncio.Event().wait()

        client = make_client(OVERLOADED, settings(), sleep=sleep)
        replies: Replies = []
        task = asyncio.create_task(_asked(client, Generate("r1", MESSAGES), replies))
        await waiting.wait()
        task.cancel()
        ended = await task
        await client.close()
        return replies, ended

    replies, ended = asyncio.run(run())
    assert isinstance(ended, Done)
    assert ended.finish_reason == "cancelled"
    assert len(replies) == len(ledger()) == 1


@pytest.mark.parametrize("before", [(), (start(), text("Par"))])
def test_a_time_limit_ends_with_what_there_is(before: tuple[bytes, ...]) -> None:
    async def body() -> AsyncIterator[bytes]:
        for part in before:
            yield part
        await asyncio.Event().wait()

    request = Generate("r1", MESSAGES, timeout_s=0.2)
    replies, _, ended = converse(lambda _: httpx2.Response(200, content=body()), request)
    assert isinstance(ended, Done)
    assert ended.finish_reason == "timeout"
    assert len(replies) == (1 if before else 0)


def test_pings_count_as_life() -> None:
    """The SDK drops them; without them a long silence looks like a worker that is stuck."""
    pings = 7
    steps: list[None] = []
    handler = stream(start(), *[event("ping")] * pings, text("a"), end(), STOP)

    async def run() -> None:
        client = make_client(handler, settings())
        await client.answer(
            Generate("r1", MESSAGES), lambda _: None, 0.0, lambda: steps.append(None)
        )
        await client.close()

    asyncio.run(run())
    assert len(steps) >= pings + 4  # each piece of the body


# --- the ledger -----------------------------------------------------------------------------


def test_what_is_sent_is_in_the_ledger_byte_for_byte() -> None:
    bodies: list[bytes] = []

    def handler(request: httpx2.Request) -> Any:
        bodies.append(request.content)
        (entry,) = ledger()  # before anything is answered
        assert entry.outcome == UNKNOWN
        return stream(*WHOLE)(request)

    chosen = settings(model="claude-sonnet-5-5")
    converse(handler, chosen=chosen)
    (entry,) = ledger(chosen)
    assert entry.sha256 == hashlib.sha256(bodies[0]).hexdigest()
    assert entry.bytes == len(bodies[0])
    assert (entry.scheme, entry.host, entry.path) == ("https", "api.anthropic.com", "/v1/messages")
    assert (entry.model, entry.outcome, entry.status) == ("claude-sonnet-5-5", "answered", 200)
    assert (entry.input_tokens, entry.output_tokens) == (7, 3)
    assert entry.cost == pytest.approx(7 * 2e-6 + 3 * 10e-6)
    assert entry.most is not None
    assert entry.most > entry.cost


def test_what_cannot_be_written_down_is_not_sent() -> None:
    chosen = settings()
    (chosen.home / "egress.jsonl").mkdir()
    _, _, ended = converse(pytest.fail, chosen=chosen)
    assert isinstance(ended, Failed)
    assert ended.code == "egress_unwritable"
    assert "nothing was sent" in ended.message


def test_a_transport_that_does_not_tell_is_not_trusted() -> None:
    """A new version of the HTTP library, say, without the trace that the ledger hangs on."""

    async def run() -> Done | Failed:
        silent = httpx2.AsyncClient(transport=httpx2.MockTransport(stream(*WHOLE)))
        client = Claude(settings(), http_client=silent)
        try:
            return await _asked(client, Generate("r1", MESSAGES), [])
        finally:
            await client.close()

    ended = asyncio.run(run())
    assert isinstance(ended, Failed)
    assert "without being logged" in ended.message


@pytest.mark.parametrize(
    ("parts", "outcome", "tokens"),
    [
        (
            (start(input_tokens=7, output_tokens=1), text("a"), httpx2.ReadError("x")),
            "cloud_interrupted",
            (7, 1),
        ),
        ((start(input_tokens=7), text("a"), text("b")), "cloud_truncated", (7, 2)),
    ],
)
def test_a_broken_answer_is_paid_for(parts: Any, outcome: str, tokens: tuple[int, int]) -> None:
    converse(stream(*parts))
    (entry,) = ledger()
    assert (entry.outcome, (entry.input_tokens, entry.output_tokens)) == (outcome, tokens)


# --- the budget -----------------------------------------------------------------------------


def asked_with(limit: float, handler: Handler, **cloud: Any) -> Done | Failed:
    chosen = settings(**{"model": "claude-sonnet-5-5", "daily_budget": limit, **cloud})
    return converse(handler, chosen=chosen)[2]


def test_the_budget_stops_what_comes_after_it() -> None:
    answer = stream(start(input_tokens=400_000), text("a"), end(output_tokens=30_000), STOP)
    first = asked_with(1.0, answer)
    assert isinstance(first, Done)
    assert first.usage.cost == pytest.approx(0.8 + 0.3)
    second = asked_with(1.0, pytest.fail)
    assert isinstance(second, Failed)
    assert second.code == "cloud_budget_spent"
    assert second.message == "Claude has cost $1.10 today (UTC); the budget is $1.00 a day."
    assert isinstance(asked_with(2.0, stream(*WHOLE)), Done)
    assert isinstance(asked_with(0.0, stream(*WHOLE)), Done)


def test_a_budget_needs_a_price() -> None:
    refused = asked_with(1.0, pytest.fail, model="claude-unheard-of")
    assert isinstance(refused, Failed)
    assert refused.code == "cloud_price_unknown"
    own = {"model": "claude-unheard-of", "input_price": 1.0, "output_price": 2.0}
    ended = asked_with(1.0, stream(*WHOLE), **own)
    assert isinstance(ended, Done)
    assert ended.usage.cost == pytest.approx(7e-6 + 6e-6)


def test_retries_stop_at_the_budget() -> None:
    costly = stream(start(input_tokens=900_000), event("error", **api_error("api_error", "x")))
    ended = asked_with(1.0, one_after_the_other(costly))
    assert isinstance(ended, Failed)
    assert ended.code == "cloud_budget_spent"


def test_prices() -> None:
    def model(name: str, **cloud: Any) -> Model:
        return model_of(settings(model=name, **cloud).cloud)

    assert model("claude-sonnet-5-5").cost(Usage(1_000_000, 1_000_000)) == 12.0
    assert model("claude-haiku-5-5").cost(Usage(100_000, 0)) == pytest.approx(0.01)
    assert model("claude-haiku-5-5").cost(Usage(100_001, 0)) == pytest.approx(0.0500005)
    assert model("claude-haiku-4-5-20251001").priced
    assert model("claude-unheard-of") == Model()
    assert model("claude-unheard-of").cost(Usage(1, 1)) is None
    assert model("claude-sonnet-5-5", input_price=0.0, output_price=0.0).cost(Usage(5, 5)) == 0.0
    assert model("claude-sonnet-5-5", context_length=5000).context == 5000


def test_the_table_says_when_it_was_true() -> None:
    text = Path(models.__file__).with_name("models.toml").read_text()
    table = {name: Model(**entry) for name, entry in tomllib.loads(text)["models"].items()}
    assert settings().cloud.model not in table
    assert all(one.priced and one.context >= 100_000 for one in table.values())
    assert 'as_of = "20' in text


def test_the_default_model_has_a_price() -> None:
    from shammah.settings.model import CloudSettings

    assert model_of(CloudSettings()).priced


# --- the door -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "messages",
    [
        (ChatMessage("user", "hi", private=True),),
        (ChatMessage("user", "a", True), ChatMessage("assistant", "b", True), *MESSAGES),
        (ChatMessage("user", "my key: ghp_" + "a1" * 18),),
        (ChatMessage("system", "acme"), *MESSAGES),
    ],
)
def test_nothing_private_passes_the_door(messages: tuple[ChatMessage, ...]) -> None:
    chosen = settings(privacy=PrivacySettings(words=("acme",)))
    replies, _, ended = converse(pytest.fail, Generate("r1", messages), chosen)
    assert isinstance(ended, Failed)
    assert (ended.code, replies, ledger()) == ("private", [], [])


# --- the context ----------------------------------------------------------------------------


def kept(turns: int, tokens_each: int, **cloud: Any) -> tuple[list[str], tuple[int, int]]:
    size = tokens_each * models.BYTES_PER_TOKEN - models.TURN_TOKENS * models.BYTES_PER_TOKEN
    said: list[ChatMessage] = [ChatMessage("system", "Be brief.")]
    for number in range(turns):
        said.append(ChatMessage("user", f"q{number} ".ljust(size, "x")))
        said.append(ChatMessage("assistant", f"a{number} ".ljust(size, "y")))
    said.append(ChatMessage("user", "now ".ljust(size, "x")))
    assert estimate_tokens(said[1].content) == tokens_each
    chosen = settings(**cloud).cloud
    call = build_call(Generate("r", tuple(said)), chosen, Peer.of(""))
    assert call.turns[0]["role"] == call.turns[-1]["role"] == "user"
    assert call.system == "Be brief."
    assert call.notices == ()  # the prompt tells of it, once
    heads = [str(turn["content"]).split()[0] for turn in call.turns]
    return heads, (call.unseen, call.messages)


def test_a_conversation_that_fits_is_sent_whole() -> None:
    assert kept(2, 100, context_length=1000, max_tokens=100) == (
        ["q0", "a0", "q1", "a1", "now"],
        (0, 0),
    )


@pytest.mark.parametrize(
    ("room", "heads", "unseen"),
    [
        (400, ["q1", "a1", "now"], 2),
        (350, ["q1", "a1", "now"], 2),
        (250, ["now"], 4),
        (1, ["now"], 4),
    ],
)
def test_the_oldest_turns_go_first_and_the_rest_begins_with_a_question(
    room: int, heads: list[str], unseen: int
) -> None:
    system = estimate_tokens("Be brief.")
    found = kept(2, 100, context_length=100 + system + room, max_tokens=100)
    assert found == (heads, (unseen, 5))


def test_no_more_is_asked_for_than_the_model_can_say() -> None:
    chosen = settings(model="claude-haiku-4-5", max_tokens=10**6).cloud
    assert build_call(Generate("r", MESSAGES), chosen, Peer.of("")).max_tokens == 64_000
