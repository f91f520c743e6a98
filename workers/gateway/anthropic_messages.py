"""Anthropic's ``/v1/messages``. Pure."""

from __future__ import annotations

import json

from shammah.bus.messages import ChatMessage, Done, Sampling, Tool, ToolCall, Usage
from shammah.chat.conversation import Turn
from workers.gateway.api import Document, calls_of, event
from workers.gateway.asking import CLAUDE, Asked, compose, effort_of, read_arguments
from workers.gateway.fields import Fields
from workers.gateway.openai_chat import read_schema, read_tool
from workers.gateway.refusals import Dialect, invalid

KNOWN = (
    "model messages system stream temperature top_p top_k stop_sequences max_tokens thinking "
    "tools tool_choice metadata service_tier"
).split()
REFUSED = {
    "mcp_servers": "no other servers are asked",
    "container": "nothing is run here",
}
THINKS = {"enabled": True, "disabled": False, "adaptive": None}
FINISH = {
    "stop": "end_turn",
    "length": "max_tokens",
    "timeout": "max_tokens",
    "repetition": "max_tokens",
    "refusal": "refusal",
    "tool_call": "tool_use",
}


class MessagesApi:
    """``/v1/messages``."""

    dialect = Dialect.ANTHROPIC

    def read(self, fields: Fields) -> Asked:
        if fields.whole("max_tokens", 1) is None:
            raise fields.wrong("max_tokens", "given: a whole number, at least 1")
        config = Fields(fields.get("output_config") or {}, "output_config")
        thinking = Fields(fields.get("thinking") or {"type": "adaptive"}, "thinking")
        model = fields.text("model")
        effort = effort_of(model, config.text("effort", ""))
        steering = config.others(["format", *(["effort"] if effort else [])])
        if (kind := thinking.text("type")) not in THINKS:
            raise thinking.wrong("type", "enabled, disabled or adaptive")
        adaptive = kind == "adaptive" and bool(fields.get("thinking")) and model.startswith(CLAUDE)
        ignored = fields.others([*KNOWN, *REFUSED, "output_config"])
        tools, strange = read_tools(fields)
        choice, parallel = _read_choice(fields, tools)
        sampling = Sampling(
            temperature=fields.number("temperature", 0, 1),
            top_p=fields.number("top_p", 0, 1),
            top_k=fields.whole("top_k"),
            stop=fields.texts("stop_sequences"),
            schema=read_schema(config, "format"),
            tools=tools,
            tool_choice=choice,
            parallel=parallel,
            effort=effort,
            adaptive=adaptive,
        )
        return Asked(
            model,
            read_messages(fields),
            sampling=sampling,
            max_tokens=fields.whole("max_tokens", 1),
            stream=fields.flag("stream"),
            think=THINKS[kind],
            ignored=(*ignored, *strange, *(f"output_config.{name}" for name in steering)),
        )

    def writer(self, asked: Asked, number: str, now: int) -> MessageWriter:
        return MessageWriter(f"msg_{number}")


def read_messages(fields: Fields) -> tuple[ChatMessage, ...]:
    """The conversation of a request."""
    fields.refuse(REFUSED)
    system = "\n\n".join(text for text in _read_texts(fields, "system"))
    said = [ChatMessage("system", system)]
    for one in fields.objects("messages"):
        said += _read_message(one)
    return compose(said)


def read_tools(fields: Fields) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """The tools of the client, and the names of what is offered beside them: what only Anthropic's
    own machines could do."""
    offered = list(fields.objects("tools"))
    own = [one for one in offered if one.text("type", "custom") == "custom"]
    strange = (one for one in offered if one not in own)
    return (
        tuple(read_tool(one, "input_schema") for one in own),
        tuple(f"{one.name('type')} ({one.text('type'):.30})" for one in strange),
    )


def _read_choice(fields: Fields, tools: tuple[Tool, ...]) -> tuple[str, bool]:
    """Which tool is to be called, and whether several may be."""
    choice = Fields(fields.get("tool_choice") or {"type": "auto"}, "tool_choice")
    kind, parallel = choice.text("type"), not choice.flag("disable_parallel_tool_use")
    if kind == "tool" and choice.text("name") in {tool.name for tool in tools}:
        return choice.text("name"), parallel
    if kind not in ("auto", "any", "none"):
        raise choice.wrong("type", "auto, any, none, or tool with the name of one of the tools")
    return kind, parallel


def _read_message(one: Fields) -> list[ChatMessage]:
    """A message; what tools returned comes first, each in a message of its own."""
    role = one.text("role")
    if role not in ("user", "assistant", "system"):
        raise one.wrong("role", "user or assistant")
    if not isinstance(one.get("content"), list):
        return [ChatMessage(role, one.text("content"))]
    texts: list[str] = []
    calls: list[ToolCall] = []
    results: list[ChatMessage] = []
    for block in one.objects("content"):
        match block.text("type"):
            case "thinking" | "redacted_thinking":
                pass  # no other model can read them
            case "tool_use" if role == "assistant":
                arguments = read_arguments(block.get("input"), block.name("input"))
                calls.append(ToolCall(block.text("id"), block.text("name"), arguments))
            case "tool_result" if role == "user":
                text = "\n\n".join(_read_texts(block, "content"))
                failed, call = block.flag("is_error"), block.text("tool_use_id")
                results.append(ChatMessage("tool", text, tool_call_id=call, failed=failed))
            case _:
                texts.append(_read_text(block))
    return [*results, ChatMessage(role, "\n\n".join(texts), tool_calls=tuple(calls))]


def _read_texts(fields: Fields, key: str) -> list[str]:
    if not isinstance(fields.get(key), list):
        return [fields.text(key, "")]
    return [_read_text(block) for block in fields.objects(key)]


def _read_text(block: Fields) -> str:
    if (kind := block.text("type")) != "text":
        what = f"{block.name('type')} is {kind!r:.30}: only text can be read."
        raise invalid(what, block.name("type"))
    return block.text("text")


class MessageWriter:
    """A message: thoughts in one block, the answer in the next."""

    def __init__(self, number: str) -> None:
        self._number = number
        self._blocks: list[str] = []

    def whole(self, turn: Turn, model: str) -> Document:
        thought = {"type": "thinking", "thinking": turn.thoughts, "signature": ""}
        calls = [_describe_call(call) for call in calls_of(turn)]
        content: list[Document] = [thought] if turn.thoughts else []
        content += [{"type": "text", "text": turn.answer}] if turn.answer or not calls else []
        message = self._message(model, usage_of(turn.usage))
        return message | {"content": content + calls} | _describe_end(turn)

    def begin(self, model: str) -> str:
        return _event("message_start", message=self._message(model, usage_of(Usage())))

    def piece(self, text: str) -> str:
        begun = self._enter("text", {"type": "text", "text": ""})
        return begun + self._delta({"type": "text_delta", "text": text})

    def thought(self, text: str) -> str:
        begun = self._enter("thinking", {"type": "thinking", "thinking": "", "signature": ""})
        return begun + self._delta({"type": "thinking_delta", "thinking": text})

    def idle(self) -> str:
        return _event("ping")

    def end(self, turn: Turn) -> str:
        calls = "".join(map(self._call, calls_of(turn)))
        ended = _event("message_delta", delta=_describe_end(turn), usage=usage_of(turn.usage))
        return calls + self._leave() + ended + _event("message_stop")

    def _call(self, call: ToolCall) -> str:
        begun = self._enter(call.id, _describe_call(call) | {"input": {}})
        return begun + self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def _message(self, model: str, usage: Document) -> Document:
        return {
            "id": self._number,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }

    def _enter(self, kind: str, block: Document) -> str:
        """Begin a block, unless the present one is of its kind."""
        if self._blocks and self._blocks[-1] == kind:
            return ""
        left = self._leave()
        self._blocks.append(kind)
        at = len(self._blocks) - 1
        return left + _event("content_block_start", index=at, content_block=block)

    def _leave(self) -> str:
        if not self._blocks:
            return ""
        return _event("content_block_stop", index=len(self._blocks) - 1)

    def _delta(self, delta: Document) -> str:
        return _event("content_block_delta", index=len(self._blocks) - 1, delta=delta)


def _describe_end(turn: Turn) -> Document:
    stop = turn.end.stop if isinstance(turn.end, Done) and turn.finish == "stop" else ""
    reason = "stop_sequence" if stop else FINISH.get(turn.finish, "end_turn")
    return {"stop_reason": reason, "stop_sequence": stop or None}


def _describe_call(call: ToolCall) -> Document:
    arguments = json.loads(call.arguments)
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}


def usage_of(usage: Usage) -> Document:
    """What an answer took, in Anthropic's words: what the cache held is counted apart."""
    return {
        "input_tokens": usage.input_tokens - usage.reused_tokens - usage.written_tokens,
        "cache_creation_input_tokens": usage.written_tokens,
        "cache_read_input_tokens": usage.reused_tokens,
        "output_tokens": usage.output_tokens,
    }


def _event(kind: str, **values: object) -> str:
    return event({"type": kind, **values}, kind)
