"""What servers are sent and what is read of their answers: `workers.openai.wire`."""

from __future__ import annotations

import json

import pytest

from shammah.bus.messages import ChatMessage, Sampling, Tool, ToolCall, Usage
from workers.openai.wire import (
    Chunk,
    MalformedChunkError,
    Offer,
    join_calls,
    make_body,
    read_chunk,
    read_error,
    read_models,
)

ASKED = (ChatMessage("system", "Be brief."), ChatMessage("user", "Hello", private=True))


def test_a_body_has_the_conversation_and_nothing_that_was_not_asked_for() -> None:
    assert make_body("m", ASKED, Sampling(), None) == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_settings_of_the_request_are_passed_on() -> None:
    sampling = Sampling(
        temperature=0.0, top_k=20, seed=7, stop=("\n",), schema='{"type": "object"}'
    )
    body = make_body("m", ASKED, sampling, 12)
    assert (body["temperature"], body["top_k"], body["seed"]) == (0.0, 20, 7)
    assert (body["stop"], body["max_tokens"]) == (["\n"], 12)
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"choices": [{"delta": {"content": "Hi"}}], "model": "m"}, Chunk("Hi", model="m")),
        ({"choices": [{"delta": {"role": "assistant", "content": None}}]}, Chunk()),
        ({"choices": [{"delta": {"reasoning_content": "hm"}}]}, Chunk(reasoning="hm")),
        ({"choices": [{"delta": {"reasoning": "hm"}}]}, Chunk(reasoning="hm")),
        ({"choices": [{"delta": {}, "finish_reason": "length"}]}, Chunk(finish_reason="length")),
        ({"choices": [{"finish_reason": "tool_calls"}]}, Chunk(finish_reason="tool_call")),
        ({"choices": [{"finish_reason": "sad"}]}, Chunk(finish_reason="other")),
        (
            {
                "choices": [],
                "usage": {
                    "prompt_tokens": 9,
                    "completion_tokens": 2,
                    "prompt_tokens_details": {"cached_tokens": 5},
                },
            },
            Chunk(usage=Usage(9, 2, 5)),
        ),
        ({"usage": {"prompt_tokens": -1, "completion_tokens": "2"}}, Chunk(usage=Usage())),
        ({"error": {"message": "out of memory", "code": 500}}, Chunk(error="out of memory")),
        ({"choices": [{"delta": {"content": "\ud83d"}}]}, Chunk("\ufffd")),
    ],
)
def test_chunks_of_the_servers_there_are(event: object, expected: Chunk) -> None:
    assert read_chunk(json.dumps(event)) == expected


@pytest.mark.parametrize(
    "data",
    ["", "no JSON", "[1]", '"text"', "7", '{"choices": 7}', '{"choices": [7]}', "[" * 100_000]
    + ['{"choices": [{"delta": {"content": 7}}]}', '{"choices": [{"delta": 7}]}'],
)
def test_what_is_no_chunk_is_refused(data: str) -> None:
    with pytest.raises(MalformedChunkError):
        read_chunk(data)


def test_tools_calls_and_results_are_passed_on() -> None:
    call = ToolCall("c1", "look", '{"at": "sea"}')
    messages = (
        ChatMessage("user", "Look"),
        ChatMessage("assistant", "", tool_calls=(call,)),
        ChatMessage("tool", "blue", tool_call_id="c1"),
    )
    tool = Tool("look", "Look at something", '{"type": "object"}')
    body = make_body("m", messages, Sampling(tools=(tool,), tool_choice="look"), None)
    function = {"name": "look", "arguments": '{"at": "sea"}'}
    assert body["messages"][1]["tool_calls"] == [
        {"id": "c1", "type": "function", "function": function}
    ]
    assert body["messages"][2] == {"role": "tool", "content": "blue", "tool_call_id": "c1"}
    assert body["tools"][0]["function"]["parameters"] == {"type": "object"}
    assert body["tool_choice"] == {"type": "function", "function": {"name": "look"}}
    assert make_body("m", messages, Sampling(tools=(tool,), tool_choice="any"), None)[
        "tool_choice"
    ] == ("required")


def test_calls_come_in_pieces() -> None:
    def piece(**call: object) -> tuple[tuple[int, ToolCall], ...]:
        return read_chunk(json.dumps({"choices": [{"delta": {"tool_calls": [call]}}]})).calls

    pieces = (
        *piece(index=0, id="c1", function={"name": "look", "arguments": ""}),
        *piece(index=0, function={"arguments": '{"at": '}),
        *piece(index=1, id="c2", function={"name": "go"}),
        *piece(index=0, function={"arguments": '"sea"}'}),
    )
    expected = (ToolCall("c1", "look", '{"at": "sea"}'), ToolCall("c2", "go", "{}"))
    assert join_calls(pieces) == expected


@pytest.mark.parametrize("name", ["stop_reason", "matched_stop"])
def test_some_tell_which_text_ended_it(name: str) -> None:
    for told, stop in (("END", "END"), (151645, ""), (None, "")):
        choice = {"delta": {}, "finish_reason": "stop", name: told}
        assert read_chunk(json.dumps({"choices": [choice]})).stop == stop


def test_models_with_their_contexts() -> None:
    document = {
        "data": [
            {"id": "vllm", "max_model_len": 4096},
            {"id": "llama-server", "meta": {"n_ctx": 2048, "n_ctx_train": 8192}},
            {"id": "ollama"},
            {"id": "resold", "pricing": {"prompt": "0.000003", "completion": "0.000015"}},
            {"id": "odd", "pricing": {"prompt": "much", "completion": -1}},
        ]
    }
    assert read_models(document) == {
        "vllm": Offer(4096),
        "llama-server": Offer(2048),
        "ollama": Offer(),
        "resold": Offer(0, 3.0, 15.0),
        "odd": Offer(),
    }


@pytest.mark.parametrize("document", [None, [], {}, {"data": 7}, {"data": [{}]}, {"data": ["a"]}])
def test_what_lists_no_models_is_refused(document: object) -> None:
    with pytest.raises(MalformedChunkError):
        read_models(document)


def test_a_servers_own_words() -> None:
    assert read_error({"error": {"message": "no"}}) == "no"
    assert read_error({"detail": "Not Found"}) == "Not Found"
    assert read_error("plain") == "plain"
    assert read_error({"error": 7}) == ""
