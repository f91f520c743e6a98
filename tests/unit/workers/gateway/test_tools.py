"""Tools through each API: offered, called, and what they returned."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from shammah.bus.messages import ChatMessage, Done, Provenance, Timings, Tool, ToolCall, Usage
from shammah.chat.conversation import Turn
from workers.gateway.anthropic_messages import MessagesApi
from workers.gateway.api import Api, encode
from workers.gateway.asking import Asked
from workers.gateway.fields import Fields
from workers.gateway.memory import Known, Memory
from workers.gateway.openai_chat import ChatApi
from workers.gateway.openai_responses import ResponsesApi
from workers.gateway.refusals import RefusedError

SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}}
READ = Tool("read", "Reads a file.", json.dumps(SCHEMA))
ARGUMENTS = '{"path": "a.txt"}'
CALL = ToolCall("call_1", "read", ARGUMENTS)
SAID = (
    ChatMessage("user", "Look."),
    ChatMessage("assistant", "Well.", tool_calls=(CALL,)),
    ChatMessage("tool", "text", tool_call_id="call_1"),
)
TURN = Turn(
    "Look.",
    "Well.",
    end=Done(
        "r",
        "tool_call",
        Usage(9, 3),
        Timings(),
        Provenance("cloud", "claude"),
        tool_calls=(CALL, ToolCall("call_2", "read", "{}")),
    ),
)

CHAT: dict[str, Any] = {
    "model": "auto",
    "tools": [
        {
            "type": "function",
            "function": {"name": "read", "description": READ.description, "parameters": SCHEMA},
        },
        {"type": "web_search"},
    ],
    "parallel_tool_calls": False,
    "messages": [
        {"role": "user", "content": "Look."},
        {
            "role": "assistant",
            "content": "Well.",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "read", "arguments": ARGUMENTS},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "text"},
    ],
}
RESPONSES: dict[str, Any] = {
    "model": "auto",
    "tools": [
        {
            "type": "function",
            "name": "read",
            "description": READ.description,
            "parameters": SCHEMA,
            "strict": True,
        },
        {"type": "web_search"},
    ],
    "parallel_tool_calls": False,
    "input": [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Well."}]},
        {"type": "function_call", "call_id": "call_1", "name": "read", "arguments": ARGUMENTS},
        {"type": "function_call_output", "call_id": "call_1", "output": "text"},
    ],
}
MESSAGES: dict[str, Any] = {
    "model": "auto",
    "max_tokens": 9,
    "tools": [
        {
            "name": "read",
            "description": READ.description,
            "input_schema": SCHEMA,
            "cache_control": {"type": "ephemeral"},
        },
        {"type": "web_search", "name": "web_search"},
    ],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "messages": [
        {"role": "user", "content": "Look."},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Well."},
                {"type": "tool_use", "id": "call_1", "name": "read", "input": {"path": "a.txt"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "call_1",
                    "content": [{"type": "text", "text": "text"}],
                }
            ],
        },
    ],
}
APIS = [(ChatApi(), CHAT), (ResponsesApi(), RESPONSES), (MessagesApi(), MESSAGES)]


def read(api: Api, document: dict[str, Any], **more: Any) -> Asked:
    return api.read(Fields(document | more))


@pytest.mark.parametrize(("api", "document"), APIS)
def test_all_apis_mean_the_same(api: Api, document: dict[str, Any]) -> None:
    asked = read(api, document)
    assert asked.messages == SAID
    assert asked.sampling.tools == (READ,)
    assert (asked.sampling.tool_choice, asked.sampling.parallel) == ("auto", False)
    assert asked.ignored == ("tools[1].type (web_search)",)


def test_which_one_is_to_be_called() -> None:
    named = {"type": "function", "function": {"name": "read"}}
    for choice, wanted in (("required", "any"), ("none", "none"), (named, "read")):
        assert read(ChatApi(), CHAT, tool_choice=choice).sampling.tool_choice == wanted
    flat = {"type": "function", "name": "read"}
    assert read(ResponsesApi(), RESPONSES, tool_choice=flat).sampling.tool_choice == "read"
    tool = {"type": "tool", "name": "read"}
    assert read(MessagesApi(), MESSAGES, tool_choice=tool).sampling.tool_choice == "read"
    for api, document, choice in (
        (ChatApi(), CHAT, "some"),
        (ChatApi(), CHAT, {"type": "function", "function": {"name": "write"}}),
        (MessagesApi(), MESSAGES, {"type": "tool", "name": "write"}),
        (MessagesApi(), MESSAGES, {"type": "some"}),
    ):
        with pytest.raises(RefusedError, match="tool_choice"):
            read(api, document, tool_choice=choice)


def test_what_was_returned_comes_before_what_is_said_and_may_be_a_failure() -> None:
    result = {"type": "tool_result", "tool_use_id": "call_1", "content": "no", "is_error": True}
    last = {"role": "user", "content": [{"type": "text", "text": "Go on."}, result]}
    asked = read(MessagesApi(), MESSAGES, messages=[*MESSAGES["messages"][:2], last])
    failed = ChatMessage("tool", "no", tool_call_id="call_1", failed=True)
    assert asked.messages[2:] == (failed, ChatMessage("user", "Go on."))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (CHAT["messages"][:2], "must be the user's"),
        ([*CHAT["messages"][:2], {"role": "user", "content": "x"}], "has returned nothing"),
        ([*CHAT["messages"], CHAT["messages"][2]], "has returned already"),
        ([CHAT["messages"][0], CHAT["messages"][2]], "No call is named"),
    ],
)
def test_calls_and_what_they_returned_go_together(said: list[Any], why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        read(ChatApi(), CHAT, messages=said)


def test_arguments_are_an_object() -> None:
    call = {"id": "call_1", "function": {"name": "read", "arguments": "[1]"}}
    said = [CHAT["messages"][0], {"role": "assistant", "tool_calls": [call]}]
    with pytest.raises(RefusedError, match=r"messages\[1\].tool_calls\[0\].function.arguments"):
        read(ChatApi(), CHAT, messages=said)


def streamed(api: Api, document: dict[str, Any]) -> list[dict[str, Any]]:
    writer = api.writer(read(api, document), "n", 1)
    text = writer.begin("m") + writer.piece("Well.") + writer.end(TURN)
    lines = (line for line in text.splitlines() if line.startswith("data: {"))
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_calls_in_a_chat() -> None:
    whole = ChatApi().writer(read(ChatApi(), CHAT), "n", 1).whole(TURN, "m")["choices"][0]
    function = {"name": "read", "arguments": ARGUMENTS}
    first = {"id": "call_1", "type": "function", "function": function}
    assert whole["message"]["tool_calls"][0] == first
    assert whole["finish_reason"] == "tool_calls"
    *_, calls, last = streamed(ChatApi(), CHAT)
    assert calls["choices"][0]["delta"]["tool_calls"][0] == {"index": 0, **first}
    assert calls["choices"][0]["delta"]["tool_calls"][1]["index"] == 1
    assert last["choices"][0]["finish_reason"] == "tool_calls"


def test_calls_in_a_message() -> None:
    whole = MessagesApi().writer(read(MessagesApi(), MESSAGES), "n", 1).whole(TURN, "m")
    used = {"type": "tool_use", "id": "call_1", "name": "read", "input": {"path": "a.txt"}}
    assert whole["content"][:2] == [{"type": "text", "text": "Well."}, used]
    assert whole["stop_reason"] == "tool_use"
    events = streamed(MessagesApi(), MESSAGES)
    blocks = [one["content_block"] for one in events if one["type"] == "content_block_start"]
    assert blocks[1] == used | {"input": {}}
    said = [one["delta"] for one in events if one["type"] == "content_block_delta"]
    assert said[1] == {"type": "input_json_delta", "partial_json": ARGUMENTS}
    assert sum(one["type"] == "content_block_stop" for one in events) == len(blocks) == 3


def test_arguments_with_half_a_character_can_be_sent() -> None:
    turn = replace(
        TURN, end=replace(TURN.end, tool_calls=(replace(CALL, arguments=r'{"a": "\ud83d"}'),))
    )
    whole = MessagesApi().writer(read(MessagesApi(), MESSAGES), "n", 1).whole(turn, "m")
    assert json.loads(encode(whole))["content"][1]["input"] == {"a": "?"}


def test_a_message_says_which_text_ended_it() -> None:
    ended = Done("r", "stop", Usage(), Timings(), Provenance("inference", "m"), stop="END")
    for stop, reason, text in (("END", "stop_sequence", "END"), ("", "end_turn", None)):
        turn = Turn("Look.", "Well.", end=replace(ended, stop=stop))
        writer = MessagesApi().writer(read(MessagesApi(), MESSAGES), "n", 1)
        whole, last = writer.whole(turn, "m"), writer.end(turn)
        assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, text)
        delta = json.dumps({"stop_reason": reason, "stop_sequence": text}, separators=(",", ":"))
        assert f'"delta":{delta}' in last


def test_calls_in_a_response() -> None:
    whole = ResponsesApi().writer(read(ResponsesApi(), RESPONSES), "n", 1).whole(TURN, "m")
    kinds = [one["type"] for one in whole["output"]]
    assert kinds == ["message", "function_call", "function_call"]
    assert whole["output"][1]["call_id"] == "call_1"
    events = streamed(ResponsesApi(), RESPONSES)
    done = [one["item"] for one in events if one["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]
    assert [one["sequence_number"] for one in events] == list(range(len(events)))


def test_a_conversation_is_known_again_however_its_arguments_are_written() -> None:
    memory = Memory()
    memory.learn(SAID[:1], TURN, Known(3, "k"))
    calls = (ToolCall("call_1", "read", '{"path":"a.txt"}'), ToolCall("call_2", "read", " {}"))
    again = ChatMessage("assistant", "Well.", tool_calls=calls)
    assert memory.known((SAID[0], again)).number == 3
