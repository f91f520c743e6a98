"""The endpoint with the SDKs that other programs are made with: the starter answers, or a recording
Messages API in Claude's place."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from shammah.privacy.ledger import read_ledger
from shammah.supervision.lifecycle import stop
from tests.fakes.asking_http import Endpoint, start_gateway
from tests.fakes.sandbox import LIMIT_S, Sandbox
from tests.real.recorder import Recorder
from tests.real.servers import servers_python

FRANCE = "What is the capital of France?"
MAIL = "Write to anna.weber@firma-weber.de today"

OPENAI = """
import asyncio, json, sys
import openai, pydantic
class City(pydantic.BaseModel):
    city: str
url, key, question = sys.argv[1:]
client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
asking = [{"role": "user", "content": question}]
said = {"models": [one.id for one in client.models.list()]}
whole = client.chat.completions.create(model="local", messages=asking, max_tokens=128000, seed=1)
said["whole"] = whole.choices[0].message.content
said["usage"] = whole.usage.total_tokens
stream = client.chat.completions.create(
    model="auto", messages=asking, stream=True, stream_options={"include_usage": True}
)
chunks = list(stream)
said["stream"] = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
said["stream_usage"] = chunks[-1].usage.completion_tokens
said["response"] = client.responses.create(model="auto", input=question).output_text
with client.responses.stream(model="auto", input=question) as events:
    said["response_stream"] = "".join(
        one.delta for one in events if one.type == "response.output_text.delta"
    )
    said["response_final"] = events.get_final_response().output_text
pieces = client.completions.create(model="auto", prompt=question, stream=True)
said["completion_stream"] = "".join(one.choices[0].text for one in pieces)
said["completion"] = client.completions.create(model="auto", prompt=question).choices[0].text
cut = client.chat.completions.create(model="auto", messages=asking, max_completion_tokens=2)
said["cut"] = cut.choices[0].finish_reason
schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"], "additionalProperties": False}
formed = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
held = client.chat.completions.create(model="local", messages=asking, response_format=formed)
said["schema"] = json.loads(held.choices[0].message.content)
tools = [{"type": "function", "function": {"name": "look_up", "parameters": schema}}]
called = client.chat.completions.create(
    model="local", messages=asking, tools=tools, tool_choice="required", parallel_tool_calls=False
).choices[0]
said["called"] = [called.finish_reason, called.message.tool_calls[0].function.name]
said["arguments"] = json.loads(called.message.tool_calls[0].function.arguments)
back = [
    {"role": "tool", "tool_call_id": call.id, "content": "Paris has 2 million people."}
    for call in called.message.tool_calls
]
after = [*asking, called.message.model_dump(exclude_none=True), *back]
later = client.chat.completions.create(
    model="local", messages=after, tools=tools, tool_choice="none", max_tokens=20
)
said["after"] = later.choices[0].message.content
flat = [{"type": "function", "name": "look_up", "parameters": schema, "strict": True}]
response = client.responses.create(
    model="local", input=question, tools=flat, tool_choice="required", parallel_tool_calls=False
)
said["responded"] = response.output[-1].name
returned = {"type": "function_call_output", "call_id": response.output[-1].call_id, "output": "2"}
calls = [one.model_dump(exclude_none=True) for one in response.output]
said["response_after"] = client.responses.create(
    model="local", input=[*asking, *calls, returned], tools=flat, tool_choice="none",
    max_output_tokens=20, store=False, include=["reasoning.encrypted_content"]
).output_text
with client.responses.stream(
    model="local", input=question, tools=flat, tool_choice="required", parallel_tool_calls=False
) as events:
    said["responded_stream"] = json.loads(events.get_final_response().output[-1].arguments)
pieces = client.chat.completions.create(
    model="local", messages=asking, tools=tools, tool_choice="required", stream=True,
    parallel_tool_calls=False, metadata={"a": "b"}, store=True, reasoning_effort="low"
)
written = [one.choices[0].delta.tool_calls or [] for one in pieces if one.choices]
written = "".join(call.function.arguments for calls in written for call in calls)
said["called_stream"] = json.loads(written)
parsed = client.chat.completions.parse(model="local", messages=asking, response_format=City)
said["parsed"] = type(parsed.choices[0].message.parsed.city).__name__
said["one_model"] = client.models.retrieve("auto").id
async def ask():
    async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as later:
        pieces = await later.chat.completions.create(model="auto", messages=asking, stream=True)
        said["async_stream"] = "".join([one.choices[0].delta.content or "" async for one in pieces])
        response = await later.responses.create(model="auto", input=question)
        said["async_response"] = response.output_text
        one = await later.chat.completions.create(model="auto", messages=asking)
        return one.choices[0].message.content
said["async"] = asyncio.run(ask())
def fails(call):
    try:
        call()
    except openai.APIStatusError as error:
        return [type(error).__name__, error.code]
said["embeddings"] = fails(lambda: client.embeddings.create(model="auto", input="a"))
said["n"] = fails(lambda: client.chat.completions.create(model="auto", messages=asking, n=2))
long = [{"role": "user", "content": "word " * 20000}]
said["long"] = fails(lambda: client.chat.completions.create(model="local", messages=long))
said["model"] = fails(lambda: client.chat.completions.create(model="gpt-4", messages=asking))
stranger = openai.OpenAI(base_url=url, api_key="wrong", max_retries=0)
said["stranger"] = fails(lambda: stranger.models.list())
print(json.dumps(said))
"""


@pytest.fixture
def cloud(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    server = Recorder(sandbox)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    yield server
    server.close()


@pytest.fixture
def endpoint(sandbox: Sandbox, cloud: Recorder) -> Iterator[Endpoint]:
    yield start_gateway(sandbox, "--model", "starter")
    for role in ("gateway", "inference", "cloud"):
        stop(role, sandbox.endpoints)


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=endpoint.url, api_key=endpoint.token, max_retries=0) as made:
        yield made


def asking(text: str, model: str = "local", most: int = 20000) -> dict[str, Any]:
    return {"model": model, "max_tokens": most, "messages": [{"role": "user", "content": text}]}


def test_openais_sdk(endpoint: Endpoint) -> None:
    command = [servers_python(), "-c", OPENAI, f"{endpoint.url}/v1", endpoint.token, FRANCE]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=3 * LIMIT_S)
    assert not ended.returncode, ended.stderr
    said = json.loads(ended.stdout)
    assert said["models"] == ["auto", "local", "cloud", "claude-sonnet-5-5", "starter"]
    ways = "whole stream response response_stream response_final async async_stream async_response"
    ways += " completion completion_stream"
    assert all("Paris" in said[way] for way in ways.split()), said
    assert said["cut"] == "length"
    assert list(said["schema"]) == list(said["arguments"]) == ["city"]
    assert said["called"] == ["tool_calls", "look_up"]
    assert list(said["called_stream"]) == list(said["responded_stream"]) == ["city"]
    assert said["after"]
    assert said["response_after"]
    assert (said["responded"], said["parsed"], said["one_model"]) == ("look_up", "str", "auto")
    assert said["usage"] > said["stream_usage"] > 0
    assert said["embeddings"] == ["BadRequestError", "embeddings_unsupported"]
    assert said["n"] == ["BadRequestError", "invalid_request"]
    assert said["long"] == ["BadRequestError", "context_length_exceeded"]
    assert said["model"] == ["NotFoundError", "model_not_found"]
    assert said["stranger"] == ["AuthenticationError", "invalid_api_key"]


def test_anthropics_sdk(client: anthropic.Anthropic, endpoint: Endpoint) -> None:
    assert all("Paris" in said for said in asyncio.run(ask_anthropic(endpoint)))
    whole = client.messages.create(**asking(FRANCE), system="You are a helpful assistant.")
    assert "Paris" in whole.content[0].text
    assert (whole.stop_reason, whole.model) == ("end_turn", "starter")
    with client.messages.stream(**asking(FRANCE)) as stream:
        assert "Paris" in "".join(stream.text_stream)
        last = stream.get_final_message()
    assert last.usage.output_tokens > 0
    assert last.usage.input_tokens + (last.usage.cache_read_input_tokens or 0) > 0
    cut = client.messages.create(**asking(FRANCE, most=2))
    assert cut.stop_reason == "max_tokens"
    counted = client.messages.count_tokens(model="auto", messages=asking(FRANCE)["messages"])
    assert counted.input_tokens > 4
    assert [one.id for one in client.models.list()][:2] == ["auto", "local"]
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: 20093 tokens > 8192"):
        client.messages.create(**asking("word " * 20000))
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**asking(FRANCE, model="gpt-4"))
    with pytest.raises(anthropic.BadRequestError, match="mcp_servers"):
        client.messages.create(**asking(FRANCE), extra_body={"mcp_servers": [{"url": "x"}]})


async def ask_anthropic(endpoint: Endpoint) -> list[str]:
    """What the SDK for asyncio says, whole and as a stream."""
    url, key = endpoint.url, endpoint.token
    async with anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0) as client:
        whole = await client.messages.create(**asking(FRANCE))
        async with client.messages.stream(**asking(FRANCE)) as stream:
            said = [text async for text in stream.text_stream]
        return [whole.content[0].text, "".join(said)]


def test_anthropics_sdk_has_a_tool_called(client: anthropic.Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
    }
    tools: Any = [{"name": "look_up", "description": "Looks it up.", "input_schema": schema}]
    ask = asking(FRANCE) | {"tools": tools, "tool_choice": {"type": "any"}}
    ask["tool_choice"]["disable_parallel_tool_use"] = True
    with client.messages.stream(**ask) as stream:
        called = stream.get_final_message()
    assert called.stop_reason == "tool_use"
    used = called.content[-1]
    assert (used.type, used.name, list(used.input)) == ("tool_use", "look_up", ["city"])
    back = [
        {"type": "tool_result", "tool_use_id": one.id, "content": "2 million people"}
        for one in called.content
        if one.type == "tool_use"
    ]
    said = [block.model_dump() for block in called.content]
    messages = [
        *ask["messages"],
        {"role": "assistant", "content": said},
        {"role": "user", "content": back},
    ]
    none = {"messages": messages, "tool_choice": {"type": "none"}, "max_tokens": 20}
    assert client.messages.create(**ask | none).content[0].text


def test_what_claude_is_asked_is_in_the_ledger_and_nothing_private_is_among_it(
    sandbox: Sandbox, client: anthropic.Anthropic, cloud: Recorder
) -> None:
    answer = client.messages.with_raw_response.create(**asking("hello", model="claude-opus-5-5"))
    assert answer.headers["shammah-target"] == "cloud"
    assert answer.parse().content[0].text == "cloud answer 1"
    with pytest.raises(anthropic.PermissionDeniedError, match=r"privacy\.emails"):
        client.messages.create(**asking(MAIL, model="cloud"))
    local = client.messages.with_raw_response.create(**asking(MAIL, model="auto", most=4))
    assert local.headers["shammah-target"] == "local"
    assert local.headers["shammah-reason"] == "private"
    assert [json.loads(body)["model"] for body in cloud.bodies] == ["claude-opus-5-5"]
    assert not any(b"weber" in body for body in cloud.bodies)
    [sent], _ = read_ledger(sandbox.shammah_home)
    assert (sent.bytes, sent.model) == (len(cloud.bodies[0]), "claude-opus-5-5")


def test_what_is_too_long_here_goes_to_claude_where_that_may_be(
    client: anthropic.Anthropic, cloud: Recorder
) -> None:
    client.messages.create(**asking("hello", most=2))  # the local model is ready
    answer = client.messages.with_raw_response.create(**asking("word " * 20000, model="auto"))
    assert answer.headers["shammah-reason"] == "context_too_long"
    assert len(cloud.bodies) == 1
