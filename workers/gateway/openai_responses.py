"""OpenAI's ``/v1/responses``: its text. Nothing is kept under a response's name. Pure."""

from __future__ import annotations

from typing import Any

from shammah.bus.messages import Sampling, Usage
from shammah.chat.turn import Turn
from workers.gateway.api import Document, event
from workers.gateway.asking import Asked, Said, compose
from workers.gateway.fields import Fields
from workers.gateway.openai_chat import read_schema, read_text
from workers.gateway.refusals import Dialect, invalid

KNOWN = (
    "model input instructions stream temperature top_p max_output_tokens text reasoning "
    "tool_choice parallel_tool_calls store user metadata"
).split()
REFUSED = {
    "background": "an answer lives as long as its connection",
    "conversation": "no conversation is kept here; send the whole of it",
    "previous_response_id": "no response is kept here; send the whole conversation",
    "prompt": "no prompts are kept here",
    "tools": "the answer is text only",
    "top_logprobs": "no probabilities are given out",
}
ROLES = ("system", "developer", "user", "assistant")


class ResponsesApi:
    """``/v1/responses``."""

    dialect = Dialect.OPENAI

    def read(self, fields: Fields) -> Asked:
        fields.refuse(REFUSED)
        said: list[Said] = [("system", fields.text("instructions", ""))]
        if isinstance(fields.get("input"), str):
            said.append(("user", fields.text("input")))
        else:
            said += [pair for item in fields.objects("input") for pair in _read_item(item)]
        text = Fields(fields.get("text") or {}, "text")
        reasoning = Fields(fields.get("reasoning") or {}, "reasoning")
        sampling = Sampling(
            temperature=fields.number("temperature", 0, 2),
            top_p=fields.number("top_p", 0, 1),
            schema=read_schema(text, "format"),
        )
        return Asked(
            fields.text("model"),
            compose(said),
            sampling=sampling,
            max_tokens=fields.whole("max_output_tokens", 1),
            stream=fields.flag("stream"),
            think=False if reasoning.text("effort", "") == "none" else None,
            ignored=fields.others([*KNOWN, *REFUSED]),
        )

    def writer(self, asked: Asked, number: str, now: int) -> ResponseWriter:
        return ResponseWriter(number, now, asked)


def _read_item(item: Fields) -> list[Said]:
    kind = item.text("type", "message")
    if kind == "reasoning":
        return []
    if kind != "message":
        what = f"{item.name('type')} is {kind!r:.30}: only messages can be read."
        raise invalid(what, item.name("type"))
    if (role := item.text("role")) not in ROLES:
        raise item.wrong("role", "system, developer, user or assistant")
    return [("system" if role == "developer" else role, read_text(item, "content"))]


class ResponseWriter:
    """A response with one message."""

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
        begun = "" if self._begun else self._enter()
        part = _text_part(turn.answer)
        done = self._part("response.output_text.done", text=turn.answer, logprobs=[])
        done += self._part("response.content_part.done", part=part)
        item = self._item([part], "completed")
        done += self._event("response.output_item.done", output_index=0, item=item)
        response = self._ended(turn)
        return begun + done + self._event(f"response.{response['status']}", response=response)

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
        cut = turn.finish in ("length", "timeout")
        output = [self._item([_text_part(turn.answer)], "incomplete" if cut else "completed")]
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
