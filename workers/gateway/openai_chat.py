"""OpenAI's ``/v1/chat/completions`` and the older ``/v1/completions``. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator

from shammah.bus.messages import Sampling, Usage
from shammah.chat.turn import Turn
from workers.gateway.api import Document, event
from workers.gateway.asking import Asked, Said, compose
from workers.gateway.fields import Fields
from workers.gateway.refusals import Dialect, invalid

KNOWN = (
    "model messages prompt stream stream_options temperature top_p seed stop max_tokens "
    "max_completion_tokens n user tool_choice response_format parallel_tool_calls reasoning_effort"
).split()
REFUSED = {
    "logprobs": "no probabilities are given out",
    "top_logprobs": "no probabilities are given out",
    "logit_bias": "single tokens cannot be weighted",
    "presence_penalty": "only temperature, top_p and seed steer the choice of words",
    "frequency_penalty": "only temperature, top_p and seed steer the choice of words",
    "audio": "answers are text",
    "functions": "tools took its place",
    "web_search_options": "nothing searches the web here",
    "tools": "the answer is text only",
    "suffix": "text is only continued at its end",
    "echo": "the answer alone is returned",
}
FINISH = {"stop": "stop", "length": "length", "timeout": "length", "refusal": "content_filter"}


class ChatApi:
    """``/v1/chat/completions``."""

    dialect = Dialect.OPENAI

    def read(self, fields: Fields) -> Asked:
        return read_options(
            fields, [said for one in fields.objects("messages") for said in _read_message(one)]
        )

    def writer(self, asked: Asked, number: str, now: int) -> ChatWriter:
        return ChatWriter(f"chatcmpl-{number}", now, counted=asked.counted)


class CompletionApi:
    """``/v1/completions``: the prompt is a question."""

    dialect = Dialect.OPENAI

    def read(self, fields: Fields) -> Asked:
        prompts = fields.texts("prompt")
        if len(prompts) != 1:
            raise fields.wrong("prompt", "one text")
        return read_options(fields, [("user", prompts[0])])

    def writer(self, asked: Asked, number: str, now: int) -> CompletionWriter:
        return CompletionWriter(f"cmpl-{number}", now, counted=asked.counted)


def read_options(fields: Fields, said: list[Said]) -> Asked:
    """Everything of a request but what was ``said``."""
    fields.refuse(REFUSED)
    if fields.whole("n", 1) not in (None, 1):
        raise invalid("n must be 1: there is one answer to a question.", "n")
    longest = fields.whole("max_completion_tokens", 1)
    streamed = fields.get("stream_options")
    sampling = Sampling(
        temperature=fields.number("temperature", 0, 2),
        top_p=fields.number("top_p", 0, 1),
        seed=fields.whole("seed", -(2**63)),
        stop=fields.texts("stop"),
        schema=read_schema(fields, "response_format"),
    )
    return Asked(
        fields.text("model"),
        compose(said),
        sampling=sampling,
        max_tokens=fields.whole("max_tokens", 1) if longest is None else longest,
        stream=fields.flag("stream"),
        think=False if fields.text("reasoning_effort", "") == "none" else None,
        ignored=fields.others([*KNOWN, *REFUSED]),
        counted=streamed is not None and Fields(streamed, "stream_options").flag("include_usage"),
    )


def read_schema(fields: Fields, key: str) -> str:
    """The JSON schema of an answer's format, as JSON; empty: it is text."""
    if fields.get(key) is None:
        return ""
    wanted = Fields(fields.get(key), fields.name(key))
    match wanted.text("type"):
        case "text":
            return ""
        case "json_object":
            return json.dumps({"type": "object"})
        case "json_schema":  # one level deeper here than in Responses and Messages
            inner = wanted.get("json_schema")
            holder = wanted if inner is None else Fields(inner, wanted.name("json_schema"))
            if not isinstance(holder.get("schema"), dict):
                raise holder.wrong("schema", "a JSON schema")
            return json.dumps(holder.get("schema"))
    raise wanted.wrong("type", "text, json_object or json_schema")


def _read_message(one: Fields) -> Iterator[Said]:
    role = one.text("role")
    if role not in ("system", "developer", "user", "assistant"):
        raise one.wrong("role", "system, developer, user or assistant")
    one.refuse({"tool_calls": "the answer is text only", "audio": "answers are text"})
    yield "system" if role == "developer" else role, read_text(one, "content")


def read_text(one: Fields, key: str) -> str:
    """A text, or the texts of a list of parts."""
    content = one.get(key)
    if content is None or isinstance(content, str):
        return content or ""
    return "\n\n".join(_read_part(part) for part in one.objects(key))


def _read_part(part: Fields) -> str:
    kind = part.text("type")
    if kind not in ("text", "input_text", "output_text"):
        what = f"{part.name('type')} is {kind!r:.30}: only text can be read."
        raise invalid(what, part.name("type"))
    return part.text("text")


class _ChunkWriter:
    """What the two APIs share: chunks of one object, and ``[DONE]``."""

    KIND = ""
    CHUNK = ""

    def __init__(self, number: str, now: int, *, counted: bool) -> None:
        self._number = number
        self._now = now
        self._counted = counted
        self._model = ""

    def begin(self, model: str) -> str:
        self._model = model
        return ""

    def piece(self, text: str) -> str:
        return self._chunk([self._choice(text)])

    def thought(self, text: str) -> str:
        return ""

    def idle(self) -> str:
        return ": the answer has not begun yet\n\n"

    def end(self, turn: Turn) -> str:
        last = self._chunk([self._choice("", FINISH.get(turn.finish, "stop"))])
        if self._counted:
            last += self._chunk([], usage_of(turn.usage))
        return last + "data: [DONE]\n\n"

    def whole(self, turn: Turn, model: str) -> Document:
        self._model = model
        choice = self._whole_choice(turn)
        return self._document(self.KIND, [choice]) | {"usage": usage_of(turn.usage)}

    def _chunk(self, choices: list[Document], usage: Document | None = None) -> str:
        document = self._document(self.CHUNK, choices)
        return event(document | ({"usage": usage} if self._counted else {}))

    def _document(self, kind: str, choices: list[Document]) -> Document:
        named = {"id": self._number, "object": kind, "created": self._now, "model": self._model}
        return {**named, "choices": choices}

    def _choice(self, text: str, finish: str | None = None) -> Document:
        raise NotImplementedError

    def _whole_choice(self, turn: Turn) -> Document:
        raise NotImplementedError


class ChatWriter(_ChunkWriter):
    """A chat completion; thoughts are in ``reasoning_content``, as other servers have them."""

    KIND, CHUNK = "chat.completion", "chat.completion.chunk"

    def begin(self, model: str) -> str:
        super().begin(model)
        return self._delta({"role": "assistant", "content": ""})

    def thought(self, text: str) -> str:
        return self._delta({"reasoning_content": text})

    def _delta(self, delta: Document, finish: str | None = None) -> str:
        return self._chunk([{"index": 0, "delta": delta, "finish_reason": finish}])

    def _choice(self, text: str, finish: str | None = None) -> Document:
        delta = {"content": text} if finish is None else {}
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}

    def _whole_choice(self, turn: Turn) -> Document:
        message: Document = {"role": "assistant", "content": turn.answer, "refusal": None}
        if turn.thoughts:
            message["reasoning_content"] = turn.thoughts
        finish = FINISH.get(turn.finish, "stop")
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}


class CompletionWriter(_ChunkWriter):
    """A completion."""

    KIND = CHUNK = "text_completion"

    def _choice(self, text: str, finish: str | None = None) -> Document:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}

    def _whole_choice(self, turn: Turn) -> Document:
        return self._choice(turn.answer, FINISH.get(turn.finish, "stop"))


def usage_of(usage: Usage) -> Document:
    """What an answer took, in OpenAI's words."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.reused_tokens},
    }
