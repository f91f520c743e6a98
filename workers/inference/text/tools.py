"""Tools for a local model: what it is told of them, and what calls its answer holds. Pure.

Calls are written as Hermes, Qwen and many others write them: an object with ``name`` and
``arguments`` between two tags. A chat template that has this form writes it itself; to any other
model it is explained in the system prompt, and calls and results are text.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from shammah.bus.messages import ChatMessage, Sampling, Tool, ToolCall
from workers.text.stop_strings import StopStrings
from workers.text.tool_tags import CALL, CALL_END

_EXPLAINED = """\
You may call these functions:
{tools}
To call one, write nothing but its name and its arguments as JSON between two tags:
<tool_call>
{{"name": "NAME", "arguments": {{...}}}}
</tool_call>
What it returns follows between <tool_response> tags. Where none helps, answer in words."""


def holds(sampling: Sampling) -> bool:
    """Whether an answer is held to a schema, or its calls to theirs."""
    return bool(sampling.schema or (sampling.tools and sampling.tool_choice != "none"))


def writes_calls(template: str) -> bool:
    """Whether a chat template writes tools and calls in this form."""
    own = CALL in template and "tools" in template and "arguments" in template
    return own and "<function=" not in template  # Qwen3-Coder's


def as_documents(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as chat templates know them."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": json.loads(tool.parameters),
            },
        }
        for tool in tools
    ]


def as_turns(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as chat templates know them."""
    return [_as_turn(message) for message in messages]


def _as_turn(message: ChatMessage) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "type": "function",
                "id": call.id,
                "function": {"name": call.name, "arguments": json.loads(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.role == "tool":
        turn["tool_call_id"] = message.tool_call_id
    return turn


def as_text(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> list[ChatMessage]:
    """Messages without calls and results: these are written out, and the system prompt explains the
    tools."""
    said = [_written(message) for message in messages]
    if tools:
        listed = "\n".join(json.dumps(one["function"]) for one in as_documents(tools))
        explained = _EXPLAINED.format(tools=listed)
        if said and said[0].role == "system":
            said[0] = replace(said[0], content=f"{said[0].content}\n\n{explained}")
        else:
            said.insert(0, ChatMessage("system", explained))
    merged: list[ChatMessage] = []
    for one in said:  # several results, and what the user says then, are one message
        if merged and merged[-1].role == one.role == "user":
            merged[-1] = replace(merged[-1], content=f"{merged[-1].content}\n{one.content}")
        else:
            merged.append(one)
    return merged


def _written(message: ChatMessage) -> ChatMessage:
    if message.role == "tool":
        text = f"<tool_response>\n{message.content}\n</tool_response>"
        return ChatMessage("user", text, message.private)
    calls = [
        f'{CALL}\n{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}\n{CALL_END}'
        for call in message.tool_calls
    ]
    return replace(message, content="\n".join(filter(None, [message.content, *calls])))


class CallSplitter:
    """Keeps the calls of one answer apart from its text. ``expected``: there may be some."""

    def __init__(self, *, expected: bool) -> None:
        self._text = StopStrings((CALL,) if expected else ())
        self._all = ""

    def add(self, text: str) -> str:
        """What of ``text`` is to be shown."""
        self._all += text
        return self._text.add(text)

    def finish(self) -> str:
        """What was held back for nothing: the answer has ended."""
        return self._text.finish()

    @property
    def broken_off(self) -> bool:
        """Whether it ends within a call."""
        return self._text.found and CALL_END not in self._all.rpartition(CALL)[2]

    def calls(self) -> tuple[ToolCall, ...]:
        """Those that are complete, each once."""
        found = dict[tuple[str, str], ToolCall]()
        for part in self._all.split(CALL)[1:] if self._text.found else ():
            written, end, _ = part.partition(CALL_END)
            if end and (call := _read(written)) is not None:
                found.setdefault((call.name, call.arguments), call)
        return tuple(found.values())


def _read(written: str) -> ToolCall | None:
    try:
        call: Any = json.loads(written)
    except ValueError:
        return None
    if not isinstance(call, Mapping) or not isinstance(call.get("arguments"), Mapping):
        return None
    name = call.get("name")
    arguments = json.dumps(call["arguments"], ensure_ascii=False)
    is_name = isinstance(name, str)
    return ToolCall(f"call_{secrets.token_hex(8)}", str(name), arguments) if is_name else None
