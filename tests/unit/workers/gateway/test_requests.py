"""What a request of each API means, and what is refused, by its name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from shammah.bus.messages import ChatMessage, Sampling
from workers.gateway.anthropic_messages import MessagesApi
from workers.gateway.api import Api
from workers.gateway.asking import Asked
from workers.gateway.fields import Fields
from workers.gateway.openai_chat import ChatApi, CompletionApi
from workers.gateway.openai_responses import ResponsesApi
from workers.gateway.refusals import RefusedError

HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def read(api: Api, **document: Any) -> Asked:
    return api.read(Fields({"model": "auto", **document}))


def messages(*said: dict[str, Any]) -> tuple[ChatMessage, ...]:
    return read(ChatApi(), messages=list(said)).messages


def test_a_chat_with_everything() -> None:
    asked = read(
        ChatApi(),
        messages=[{"role": "developer", "content": "Be brief."}, *HELLO],
        max_completion_tokens=7,
        max_tokens=9,
        temperature=0,
        top_p=0.5,
        seed=3,
        stop="END",
        n=1,
        stream=True,
        stream_options={"include_usage": True},
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        logit_bias={},
        presence_penalty=1.5,
        min_p=0.05,
        top_k=20,
        store=False,
        service_tier="auto",
        user=None,
    )
    assert asked.messages == (ChatMessage("system", "Be brief."), ChatMessage("user", "Hello"))
    sampling = Sampling(0.0, 0.5, 20, seed=3, stop=("END",), schema=json.dumps(SCHEMA))
    sampling = replace(sampling, min_p=0.05, presence_penalty=1.5)
    assert asked.sampling == sampling
    assert (asked.max_tokens, asked.stream, asked.counted, asked.think) == (7, True, True, None)
    assert asked.ignored == ("service_tier", "store")


def test_messages_of_claude_with_everything() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    said = [{"type": "text", "text": "Yes."}]
    asked = read(
        MessagesApi(),
        system=[{"type": "text", "text": "One.", "cache_control": {"type": "ephemeral"}}],
        messages=[*HELLO, {"role": "assistant", "content": [thought, *said]}, *HELLO],
        max_tokens=128000,
        stop_sequences=["END"],
        top_k=5,
        thinking={"type": "enabled", "budget_tokens": 1024},
        output_config={"effort": "high", "format": {"type": "json_schema", "schema": SCHEMA}},
        metadata={"user_id": "u"},
        context_management={"edits": []},
    )
    assert [one.role for one in asked.messages] == ["system", "user", "assistant", "user"]
    assert asked.messages[2].content == "Yes."
    assert asked.sampling == Sampling(top_k=5, stop=("END",), schema=json.dumps(SCHEMA))
    assert (asked.max_tokens, asked.think) == (128000, True)
    assert asked.ignored == ("context_management", "output_config.effort")


@pytest.mark.parametrize(
    ("api", "said"),
    [
        (MessagesApi(), {"output_config": {"effort": "high"}, "thinking": {"type": "adaptive"}}),
        (ChatApi(), {"reasoning_effort": "high"}),
        (ResponsesApi(), {"reasoning": {"effort": "high"}, "input": "Hello", "messages": None}),
    ],
)
def test_effort_is_for_a_model_of_claudes_that_is_named(api: Api, said: dict[str, Any]) -> None:
    asked = read(api, model="claude-opus-5-5", max_tokens=9, **{"messages": HELLO, **said})
    assert asked.sampling.effort == "high"
    assert asked.sampling.adaptive is ("thinking" in said)
    assert not {"output_config.effort", "reasoning_effort", "reasoning"} & {*asked.ignored}
    for model in ("auto", "cloud"):
        other = read(api, model=model, max_tokens=9, **{"messages": HELLO, **said})
        assert other.sampling == Sampling()


def test_a_response_with_everything() -> None:
    part = {"type": "input_text", "text": "Hello"}
    asked = read(
        ResponsesApi(),
        instructions="Be brief.",
        input=[{"type": "reasoning", "summary": []}, {"role": "user", "content": [part]}],
        max_output_tokens=7,
        text={"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}},
        reasoning={"effort": "none"},
        truncation="auto",
    )
    assert [one.content for one in asked.messages] == ["Be brief.", "Hello"]
    assert (asked.max_tokens, asked.think) == (7, False)
    assert asked.sampling.schema == json.dumps(SCHEMA)
    assert asked.ignored == ("truncation",)
    assert read(ResponsesApi(), input="Hello").messages == (ChatMessage("user", "Hello"),)
    assert read(CompletionApi(), prompt=["Hello"]).messages == (ChatMessage("user", "Hello"),)


def test_user_and_assistant_take_turns_whatever_was_sent() -> None:
    said = messages(
        {"role": "system", "content": "One."},
        {"role": "developer", "content": "Two."},
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": "d"},
        {"role": "system", "content": "e"},
        {"role": "user", "content": "f"},
    )
    pairs = [(one.role, one.content) for one in said]
    assert pairs == [
        ("system", "One.\n\nTwo."),
        ("user", "a\n\nb\n\nc"),
        ("assistant", "d"),
        ("user", "e\n\nf"),
    ]


@pytest.mark.parametrize(
    ("api", "document", "param"),
    [
        (ChatApi(), {}, "messages"),
        (ChatApi(), {"messages": "Hello"}, "messages"),
        (ChatApi(), {"messages": ["Hello"]}, "messages[0]"),
        (ChatApi(), {"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        (ChatApi(), {"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, "messages"),
        (ChatApi(), {"messages": [{"role": "assistant", "content": "x"}, *HELLO]}, "messages"),
        (ChatApi(), {"messages": HELLO, "model": None}, "model"),
        (ChatApi(), {"messages": HELLO, "n": 2}, "n"),
        (ChatApi(), {"messages": HELLO, "temperature": 3}, "temperature"),
        (ChatApi(), {"messages": HELLO, "temperature": True}, "temperature"),
        (ChatApi(), {"messages": HELLO, "temperature": float("nan")}, "temperature"),
        (ChatApi(), {"messages": HELLO, "max_tokens": 0}, "max_tokens"),
        (ChatApi(), {"messages": HELLO, "max_tokens": 1.5}, "max_tokens"),
        (ChatApi(), {"messages": HELLO, "stop": [1]}, "stop"),
        (ChatApi(), {"messages": HELLO, "stream": "yes"}, "stream"),
        (ChatApi(), {"messages": HELLO, "logprobs": True}, "logprobs"),
        (ChatApi(), {"messages": HELLO, "logit_bias": {"1": 2}}, "logit_bias"),
        (ChatApi(), {"messages": HELLO, "frequency_penalty": 0.5}, "frequency_penalty"),
        (
            ChatApi(),
            {"messages": HELLO, "response_format": {"type": "grammar"}},
            "response_format.type",
        ),
        (
            ChatApi(),
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
        ),
        (CompletionApi(), {"prompt": ["a", "b"]}, "prompt"),
        (CompletionApi(), {"prompt": "a", "suffix": "b"}, "suffix"),
        (MessagesApi(), {"messages": HELLO}, "max_tokens"),
        (MessagesApi(), {"messages": HELLO, "max_tokens": 1, "mcp_servers": [{}]}, "mcp_servers"),
        (
            MessagesApi(),
            {"messages": HELLO, "max_tokens": 1, "thinking": {"type": "deep"}},
            "thinking.type",
        ),
        (
            MessagesApi(),
            {"messages": [{"role": "user", "content": [{"type": "image"}]}], "max_tokens": 1},
            "messages[0].content[0].type",
        ),
        (ResponsesApi(), {"input": "a", "previous_response_id": "r"}, "previous_response_id"),
        (ResponsesApi(), {"input": "a", "background": True}, "background"),
        (ResponsesApi(), {"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    ],
)
def test_what_is_refused_is_named(api: Api, document: dict[str, Any], param: str) -> None:
    with pytest.raises(RefusedError) as refused:
        read(api, **document)
    assert refused.value.status == 400
    assert refused.value.param == param
    assert param in refused.value.message or param == "messages"
