"""Tools, calls and results reach Claude unchanged, and its calls come back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from shammah.bus.messages import ChatMessage, Done, Failed, Generate, Sampling, Tool, ToolCall
from shammah.errors import ShammahError
from shammah.settings.model import CloudSettings, PrivacySettings
from tests.fakes.scripted_api import (
    STOP,
    WHOLE,
    Handler,
    converse,
    done,
    end,
    event,
    settings,
    start,
    stream,
)
from workers.cloud.request import Call, Peer, build_call

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool("weather", "Says how the weather is.", json.dumps(SCHEMA))
CALL = ToolCall("toolu_1", "weather", '{"city": "Paris"}')
ASKED = ChatMessage("user", "Weather in Paris?")
CALLED = ChatMessage("assistant", "I'll look.", tool_calls=(CALL,))
RETURNED = ChatMessage("tool", "Rain.", tool_call_id="toolu_1")
SAMPLING = Sampling(tools=(WEATHER,))
SETTINGS = CloudSettings(api_key="k", model="claude-test")


def call(*messages: ChatMessage, sampling: Sampling = SAMPLING, **changed: Any) -> Call:
    request = Generate("r1", messages, sampling)
    return build_call(request, replace(SETTINGS, **changed), Peer.of(""))


def test_definitions_calls_and_results_are_sent_as_they_are() -> None:
    sent = call(ASKED, CALLED, RETURNED, ChatMessage("user", "And tomorrow?"))
    assert sent.tools == [
        {"name": "weather", "description": "Says how the weather is.", "input_schema": SCHEMA}
    ]
    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}}
    result = {
        "type": "tool_result",
        "tool_use_id": "toolu_1",
        "content": "Rain.",
        "is_error": False,
    }
    assert sent.turns == [
        {"role": "user", "content": "Weather in Paris?"},
        {"role": "assistant", "content": [{"type": "text", "text": "I'll look."}, use]},
        {"role": "user", "content": [result, {"type": "text", "text": "And tomorrow?"}]},
    ]


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("auto", {"type": "auto", "disable_parallel_tool_use": False}),
        ("any", {"type": "any", "disable_parallel_tool_use": False}),
        ("none", {"type": "none"}),
        (
            "weather",
            {"type": "tool", "name": "weather", "disable_parallel_tool_use": False},
        ),
    ],
)
def test_the_choice_is_the_clients(choice: str, sent: dict[str, Any]) -> None:
    assert call(ASKED, sampling=replace(SAMPLING, tool_choice=choice)).tool_choice == sent


def test_without_tools_nothing_is_sent_of_them() -> None:
    plain = call(ASKED, sampling=Sampling())
    assert (plain.tools, plain.tool_choice) == ([], None)


def test_a_conversation_is_never_cut_between_a_call_and_its_result() -> None:
    long = [replace(ASKED, content="word " * 500), CALLED, RETURNED] * 4
    cut = call(*long, context_length=2600, max_tokens=100)
    assert 3 <= len(cut.turns) < 12
    assert isinstance(cut.turns[0]["content"], str)


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(ShammahError, match="no JSON object"):
        call(ASKED, sampling=Sampling(tools=(Tool("t", "", "[1]"),)))


def block_start(**block: Any) -> bytes:
    return event("content_block_start", index=1, content_block=block)


def piece(text: str) -> bytes:
    delta = {"type": "input_json_delta", "partial_json": text}
    return event("content_block_delta", index=1, delta=delta)


def calling(*pieces: str, reason: str = "tool_use") -> Handler:
    return stream(
        start(input_tokens=9, output_tokens=1),
        block_start(type="tool_use", id="toolu_2", name="weather", input={}),
        *map(piece, pieces),
        end(reason, output_tokens=12),
        STOP,
    )


def ask(handler: Handler) -> Done | Failed:
    return converse(handler, Generate("r1", (ASKED,), SAMPLING))[2]


def test_a_call_of_claudes_comes_with_the_end() -> None:
    done = ask(calling('{"city": ', '"Rome"}'))
    assert isinstance(done, Done)
    assert done.finish_reason == "tool_call"
    assert done.tool_calls == (ToolCall("toolu_2", "weather", '{"city": "Rome"}'),)


def test_a_call_without_arguments_has_none() -> None:
    done = ask(calling())
    assert isinstance(done, Done)
    assert done.tool_calls[0].arguments == "{}"


def test_a_call_that_was_cut_off_is_none() -> None:
    done = ask(calling('{"ci', reason="max_tokens"))
    assert isinstance(done, Done)
    assert (done.finish_reason, done.tool_calls) == ("length", ())


@pytest.mark.parametrize("arguments", ['{"ci', "[1]"])
def test_a_call_with_something_else_is_a_failure(arguments: str) -> None:
    assert isinstance(ask(calling(arguments)), Failed)


def test_a_tool_or_a_result_with_something_private_is_not_sent() -> None:
    def refuse(_: httpx2.Request) -> httpx2.Response:
        raise AssertionError("sent")

    chosen = settings(privacy=PrivacySettings(words=("Nightjar",)))
    tool = replace(WEATHER, description="Asks the Nightjar station.")
    for request in (
        Generate("r1", (ASKED,), Sampling(tools=(tool,))),
        Generate("r1", (ASKED, CALLED, replace(RETURNED, content="Nightjar")), SAMPLING),
    ):
        ended = converse(refuse, request, chosen)[2]
        assert isinstance(ended, Failed)
        assert ended.code == "private"


def test_what_steers_claude_is_sent_if_it_is_asked_for() -> None:
    bodies: list[dict[str, Any]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        bodies.append(json.loads(request.content))
        response: httpx2.Response = stream(*WHOLE)(request)
        return response

    steered = Sampling(schema=json.dumps(SCHEMA), effort="xhigh", adaptive=True)
    for sampling in (steered, Sampling()):
        done(answer, Generate("r1", (ASKED,), sampling))
    formed = {"type": "json_schema", "schema": SCHEMA}
    assert bodies[0]["output_config"] == {"format": formed, "effort": "xhigh"}
    assert bodies[0]["thinking"] == {"type": "adaptive"}
    assert not {"output_config", "thinking"} & {*bodies[1]}
