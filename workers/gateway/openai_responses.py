"""OpenAI's ``/v1/responses``: its text. Nothing is kept under a response's name. Pure."""

from __future__ import annotations

from typing import Any

from shammah.bus.messages import ChatMessage, Sampling, ToolCall, Usage
from shammah.chat.conversation import Turn
from workers.gateway.api import Document, calls_of, event
from workers.gateway.asking import Asked, compose, effort_of, read_arguments
from workers.gateway.fields import Fields
from workers.gateway.openai_chat import read_choice, read_schema, read_text, read_tools
from workers.gateway.refusals import Dialect, invalid

KNOWN = (
    "model input instructions stream temperature top_p max_output_tokens text reasoning "
    "tools tool_choice parallel_tool_calls store user metadata"
).split()
REFUSED = {
    "background": "an answer lives as long as its connection",
    "conversation": "no conversation is kept here; send the whole of it",
    "previous_response_id": "no response is kept here; send the whole conversation",
    "prompt": "no prompts are kept here",
    "top_logprobs": "no probabilities are given out",
}
ROLES = ("system", "developer", "user", "assistant")


class ResponsesApi:
    """``/v1/responses``."""

    dialect = Dialect.OPENAI

    def read(self, fields: Fields) -> Asked:
        fields.refuse(REFUSED)
        said = [ChatMessage("system", fields.text("instructions", ""))]
        if isinstance(fields.get("input"), str):
            said.append(ChatMessage("user", fields.text("input")))
        else:
            said += [one for item in fields.objects("input") for one in _read_item(item)]
        text = Fields(fields.get("text") or {}, "text")
        effort = Fields(fields.get("reasoning") or {}, "reasoning").text("effort", "")
        model = fields.text("model")
        tools, strange = read_tools(fields)
        sampling = Sampling(
            temperature=fields.number("temperature", 0, 2),
            top_p=fields.number("top_p", 0, 1),
            schema=read_schema(text, "format"),
            tools=tools,
            tool_choice=read_choice(fields, tools),
            parallel=fields.get("parallel_tool_calls") is not False,
            effort=effort_of(model, effort),
        )
        return Asked(
            model,
            compose(said),
            sampling=sampling,
            max_tokens=fields.whole("max_output_tokens", 1),
            stream=fields.flag("stream"),
            think=False if effort == "none" else None,
            ignored=fields.others([*KNOWN, *REFUSED]) + strange,
        )

    def writer(self, asked: Asked, number: str, now: int) -> ResponseWriter:
        return ResponseWriter(number, now, asked)


def _read_item(item: Fields) -> list[ChatMessage]:
    match kind := item.text("type", "message"):
        case "reasoning":
            return []
        case "function_call":
            arguments = read_arguments(item.get("arguments"), item.name("arguments"))
            call = ToolCall(item.text("call_id"), item.text("name"), arguments)
            return [ChatMessage("assistant", "", tool_calls=(call,))]
        case "function_call_output":
            text, call_id = read_text(item, "output"), item.text("call_id")
            return [ChatMessage("tool", text, tool_call_id=call_id)]
        case "message":
            if (role := item.text("role")) not in ROLES:
                raise item.wrong("role", "system, developer, user or assistant")
            role = "system" if role == "developer" else role
            return [ChatMessage(role, read_text(item, "content"))]
    what = f"{item.name('type')} is {kind!r:.30}: only messages, calls and outputs can be read."
    raise invalid(what, item.name("type"))


class ResponseWriter:
    """A response with one message, and calls."""

    def __init__(self, number: str, now: int, asked: Asked) -> None:
        self._number = number
        self._now = now
        self._asked = asked
        self._model = ""
        self._count = 0
        self._begun = False

    def whole(self, turn: Turn, model: str) -> Document:
        self._model = model
        return self._ended(turn)

    def begin(self, model: str) -> str:
        self._model = model
        begun = self._response("in_progress", [])
        return self._event("response.created", response=begun) + self._event(
            "response.in_progress", response=begun
        )

    def piece(self, text: str) -> str:
        begun = "" if self._begun else self._enter()
        return begun + self._part("response.output_text.delta", delta=text, logprobs=[])

    def thought(self, text: str) -> str:
        return ""

    def idle(self) -> str:
        return ": the answer has not begun yet\n\n"

    def end(self, turn: Turn) -> str:
        done = self._end_text(turn) if self._begun or not calls_of(turn) else ""
        for at, call in enumerate(self._calls(turn), start=1 if done else 0):
            begun = call | {"status": "in_progress", "arguments": ""}
            named = {"item_id": call["id"], "output_index": at}
            done += self._event("response.output_item.added", output_index=at, item=begun)
            said = call["arguments"]
            done += self._event("response.function_call_arguments.delta", **named, delta=said)
            done += self._event("response.function_call_arguments.done", **named, arguments=said)
            done += self._event("response.output_item.done", output_index=at, item=call)
        response = self._ended(turn)
        return done + self._event(f"response.{response['status']}", response=response)

    def _end_text(self, turn: Turn) -> str:
        begun = "" if self._begun else self._enter()
        part = _text_part(turn.answer)
        done = self._part("response.output_text.done", text=turn.answer, logprobs=[])
        done += self._part("response.content_part.done", part=part)
        item = self._item([part], "completed")
        return begun + done + self._event("response.output_item.done", output_index=0, item=item)

    def _calls(self, turn: Turn) -> list[Document]:
        return [
            {
                "id": f"fc_{self._number}_{at}",
                "type": "function_call",
                "status": "completed",
                "call_id": call.id,
                "name": call.name,
                "arguments": call.arguments,
            }
            for at, call in enumerate(calls_of(turn))
        ]

    def _enter(self) -> str:
        self._begun = True
        item = self._item([], "in_progress")
        added = self._event("response.output_item.added", output_index=0, item=item)
        return added + self._part("response.content_part.added", part=_text_part(""))

    def _part(self, kind: str, **values: object) -> str:
        where = {"item_id": f"msg_{self._number}", "output_index": 0, "content_index": 0}
        return self._event(kind, **where, **values)

    def _event(self, kind: str, **values: object) -> str:
        self._count += 1
        return event({"type": kind, "sequence_number": self._count - 1, **values}, kind)

    def _item(self, content: list[Document], status: str) -> Document:
        named = {"id": f"msg_{self._number}", "type": "message", "role": "assistant"}
        return {**named, "status": status, "content": content}

    def _ended(self, turn: Turn) -> Document:
        cut = turn.finish in ("length", "timeout", "repetition")
        item = self._item([_text_part(turn.answer)], "incomplete" if cut else "completed")
        calls = self._calls(turn)
        output = [item, *calls] if turn.answer or not calls else calls
        ended = self._response("incomplete" if cut else "completed", output)
        ended["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
        return ended | {"usage": usage_of(turn.usage)}

    def _response(self, status: str, output: list[Any]) -> Document:
        asked = self._asked
        return {
            "id": f"resp_{self._number}",
            "object": "response",
            "created_at": self._now,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.system or None,
            "max_output_tokens": asked.max_tokens,
            "model": self._model,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": asked.sampling.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": asked.sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "metadata": {},
        }


def _text_part(text: str) -> Document:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def usage_of(usage: Usage) -> Document:
    """What an answer took, in the words of this API."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.reused_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
