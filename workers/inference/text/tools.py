"""Tools for a local model: what it is told of them, and what calls its answer holds. Pure.

Calls are written as Hermes, Qwen and many others write them: an object with ``name`` and
``arguments`` between two tags. A chat template that has this form writes it itself; to any other
model it is explained in the system prompt, and calls and results are text.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

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

    def finish(self, *, cut: bool) -> str:
        """What was held back for nothing: the answer has ended, or is ``cut`` short. A call that
        cannot be read is text: an answer of nothing would tell nobody what went wrong."""
        held = self._text.finish()
        calls, rest = self._read()
        return held if calls or cut else held + rest

    @property
    def broken_off(self) -> bool:
        """Whether it ends within a call."""
        _, rest = self._read()
        return CALL in rest and not rest.rstrip().endswith(CALL_END)

    def calls(self) -> tuple[ToolCall, ...]:
        """Those that are complete, each once."""
        return self._read()[0]

    def _read(self) -> tuple[tuple[ToolCall, ...], str]:
        """The calls, and what follows them, from a tag on that begins none."""
        text, found = self._all if self._text.found else "", dict[tuple[str, str], ToolCall]()
        at = rest = max(text.find(CALL), 0)
        while (at := text.find(CALL, at)) >= 0:
            call, at = _read(text, at + len(CALL))
            if call is not None:
                found.setdefault((call.name, call.arguments), call)
                rest = at
        return tuple(found.values()), text[rest:]


def _finite(written: str) -> float:
    """What JSON allows and a float does not hold (``1e999``) would not be JSON when written."""
    return max(-sys.float_info.max, min(float(written), sys.float_info.max))


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


_JSON = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse)
_BLANKS = re.compile(r"\s*")


def _read(text: str, at: int) -> tuple[ToolCall | None, int]:
    """The call that begins there, and where to go on. Its end is that of its JSON: a string in it
    may hold the tags. A model that ends its answer there may leave the closing one out."""
    try:
        call, end = _JSON.raw_decode(text, _after_blanks(text, at))
    except (ValueError, RecursionError):
        return None, at
    end = _after_blanks(text, end)
    if end < len(text) and not text.startswith(CALL_END, end):
        return None, at
    return _as_call(call), end + len(CALL_END)


def _after_blanks(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    return found.end() if found else at


def _as_call(call: Any) -> ToolCall | None:
    """``None``: it is none. Some models leave out the arguments of a tool that takes none, or write
    them as a text, as OpenAI's API has them."""
    if not isinstance(call, dict) or not isinstance(name := call.get("name"), str):
        return None
    arguments = call.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = _JSON.decode(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    written = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(f"call_{secrets.token_hex(8)}", _sendable(name), _sendable(written))


def _sendable(text: str) -> str:
    """Single halves of surrogate pairs, which JSON can carry, are replaced."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
