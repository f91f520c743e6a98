"""What servers that speak OpenAI's API are sent, and what they send back. Pure.

The fields are those of ``POST /chat/completions`` with ``stream``, as vLLM, SGLang, llama-server,
ollama, LM Studio and ``transformers serve`` have them; what only some know is left out unless it
was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from shammah.bus.messages import ChatMessage, Sampling, ToolCall, Usage

ENGINE = "server"
"""What computes an answer, as far as is known here."""

DONE = "[DONE]"
"""Ends a stream, besides the end itself."""

_FINISH_REASONS = {"stop": "stop", "length": "length", "tool_calls": "tool_call"}
_SAMPLING = "temperature top_p top_k min_p seed repetition_penalty presence_penalty".split()
_MOST_TOKENS = 2**40


class MalformedChunkError(Exception):
    """A chunk that is not one of a chat completion."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one event of a stream adds. ``calls``: by their index, what is added to an id, a name
    and arguments; ``error``: the server's own words, if it broke off; ``stop``: the text that ended
    the answer, which vLLM and SGLang tell."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str = ""
    usage: Usage | None = None
    model: str = ""
    error: str = ""
    calls: tuple[tuple[int, ToolCall], ...] = ()
    stop: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a server tells of one of its models: the context in tokens (0: not told), and prices in
    US dollars for a million tokens (``None``: not told)."""

    context: int = 0
    input_price: float | None = None
    output_price: float | None = None


def make_body(
    model: str, messages: Iterable[ChatMessage], sampling: Sampling, most: int | None
) -> dict[str, Any]:
    """The body of a request. ``most``: tokens of the answer; ``None``: the server's own limit."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(one) for one in messages],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if most is not None:
        body["max_tokens"] = most
    for name in _SAMPLING:
        if (value := getattr(sampling, name)) is not None:
            body[name] = value
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.schema:
        schema = {"name": "answer", "strict": True, "schema": json.loads(sampling.schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if sampling.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": json.loads(tool.parameters),
                },
            }
            for tool in sampling.tools
        ]
        words = {"auto": "auto", "any": "required", "none": "none"}
        named = {"type": "function", "function": {"name": sampling.tool_choice}}
        body["tool_choice"] = words.get(sampling.tool_choice, named)
        body["parallel_tool_calls"] = sampling.parallel
    return body


def _message(message: ChatMessage) -> dict[str, Any]:
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_call_id:
        found["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        found["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    return found


def read_chunk(data: str) -> Chunk:
    """One event's data as a `Chunk`.

    Raises:
        MalformedChunkError: it is none.
    """
    try:
        document = json.loads(data)
        if error := document.get("error"):
            return Chunk(error=read_error(error))
        choice: Any = next(iter(document.get("choices") or ()), {})
        delta = choice.get("delta") or {}
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
        reason = choice.get("finish_reason") or ""
        stop = choice.get("stop_reason") or choice.get("matched_stop")  # or the number of a token
        return Chunk(
            _text(delta.get("content") or ""),
            _text(reasoning),
            finish_reason=_FINISH_REASONS.get(_text(reason), "other") if reason else "",
            usage=_usage(document.get("usage")),
            model=_text(document.get("model") or ""),
            calls=tuple(
                (_tokens(one.get("index")), _call(one)) for one in delta.get("tool_calls") or ()
            ),
            stop=_text(stop) if isinstance(stop, str) else "",
        )
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise MalformedChunkError from None


def join_calls(pieces: Iterable[tuple[int, ToolCall]]) -> tuple[ToolCall, ...]:
    """The calls whose ``pieces`` came one after the other.

    Raises:
        MalformedChunkError: one has arguments that are no object.
    """
    found: dict[int, ToolCall] = {}
    for index, piece in pieces:
        before = found.get(index, ToolCall("", "", ""))
        arguments = before.arguments + piece.arguments
        found[index] = ToolCall(before.id + piece.id, before.name + piece.name, arguments)
    return tuple(
        replace(call, id=call.id or f"call_{index}", arguments=_object(call.arguments or "{}"))
        for index, call in sorted(found.items())
    )


def _object(written: str) -> str:
    try:
        if isinstance(json.loads(written), dict):
            return written
    except (ValueError, RecursionError):
        pass
    raise MalformedChunkError


def read_error(found: Any) -> str:
    """The server's own words: a text, or the message of an object."""
    for _ in range(3):
        if isinstance(found, Mapping):
            found = found.get("message") or found.get("error") or found.get("detail") or ""
    return found if isinstance(found, str) else ""


def read_models(document: Any) -> dict[str, Offer]:
    """The models that ``GET /models`` lists.

    Raises:
        MalformedChunkError: it is no such list.
    """
    try:
        return {
            _text(one["id"]): Offer(_context(one), *_prices(one.get("pricing")))
            for one in document["data"]
            if _text(one["id"])
        }
    except (TypeError, KeyError, AttributeError):
        raise MalformedChunkError from None


def _prices(found: Any) -> tuple[float | None, float | None]:
    """As OpenRouter and others who resell say them: texts, in US dollars a token."""
    if not isinstance(found, Mapping):
        return None, None
    prompt, completion = (_price(found.get(name)) for name in ("prompt", "completion"))
    return prompt, completion


def _price(value: Any) -> float | None:
    try:
        price = float(value) * 1_000_000
    except (TypeError, ValueError):
        return None
    return price if 0 <= price < _MOST_TOKENS else None


def _context(entry: Mapping[str, Any]) -> int:
    """vLLM and SGLang say ``max_model_len``, llama-server ``meta.n_ctx``, LM Studio the others."""
    meta = entry.get("meta")
    for found in (entry, meta if isinstance(meta, Mapping) else {}):
        for name in ("max_model_len", "n_ctx", "loaded_context_length", "max_context_length"):
            if count := _tokens(found.get(name)):
                return count
    return 0


def _call(found: Mapping[str, Any]) -> ToolCall:
    function = found.get("function") or {}
    parts = (found.get("id"), function.get("name"), function.get("arguments"))
    call_id, name, arguments = (_text(part or "") for part in parts)
    return ToolCall(call_id, name, arguments)


def _usage(found: Any) -> Usage | None:
    if not isinstance(found, Mapping):
        return None
    details = found.get("prompt_tokens_details")
    return Usage(
        _tokens(found.get("prompt_tokens")),
        _tokens(found.get("completion_tokens")),
        _tokens(details.get("cached_tokens")) if isinstance(details, Mapping) else 0,
    )


def _tokens(value: Any) -> int:
    return value if type(value) is int and 0 < value < _MOST_TOKENS else 0


def _text(value: Any) -> str:
    """A text as it can be sent on: single halves of surrogate pairs are replaced."""
    if not isinstance(value, str):
        raise TypeError
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
