"""OpenAI's ``/v1/chat/completions`` and the older ``/v1/completions``. Pure."""

from __future__ import annotations

import json

from shammah.bus.messages import ChatMessage, Sampling, Tool, ToolCall, Usage
from shammah.chat.conversation import Turn
from workers.gateway.api import Document, calls_of, event
from workers.gateway.asking import Asked, compose, effort_of, read_arguments
from workers.gateway.fields import Fields
from workers.gateway.refusals import Dialect, invalid

KNOWN = (
    "model messages prompt stream stream_options temperature top_p seed stop max_tokens "
    "max_completion_tokens n user tools tool_choice response_format parallel_tool_calls "
    "reasoning_effort top_k min_p repetition_penalty presence_penalty"
).split()
REFUSED = {
    "logprobs": "no probabilities are given out",
    "top_logprobs": "no probabilities are given out",
    "logit_bias": "single tokens cannot be weighted",
    "frequency_penalty": "presence_penalty and repetition_penalty do what it is for",
    "audio": "answers are text",
    "functions": "tools took its place",
    "web_search_options": "nothing searches the web here",
    "suffix": "text is only continued at its end",
    "echo": "the answer alone is returned",
}
FINISH = {
    "stop": "stop",
    "length": "length",
    "timeout": "length",
    "repetition": "length",
    "refusal": "content_filter",
    "tool_call": "tool_calls",
}


class ChatApi:
    """``/v1/chat/completions``."""

    dialect = Dialect.OPENAI

    def read(self, fields: Fields) -> Asked:
        return read_options(fields, [_read_message(one) for one in fields.objects("messages")])

    def writer(self, asked: Asked, number: str, now: int) -> ChatWriter:
        return ChatWriter(f"chatcmpl-{number}", now, counted=asked.counted)


class CompletionApi:
    """``/v1/completions``: the prompt is a question."""

    dialect = Dialect.OPENAI

    def read(self, fields: Fields) -> Asked:
        prompts = fields.texts("prompt")
        if len(prompts) != 1:
            raise fields.wrong("prompt", "one text")
        return read_options(fields, [ChatMessage("user", prompts[0])])

    def writer(self, asked: Asked, number: str, now: int) -> CompletionWriter:
        return CompletionWriter(f"cmpl-{number}", now, counted=asked.counted)


def read_options(fields: Fields, said: list[ChatMessage]) -> Asked:
    """Everything of a request but what was ``said``."""
    fields.refuse(REFUSED)
    if fields.whole("n", 1) not in (None, 1):
        raise invalid("n must be 1: there is one answer to a question.", "n")
    longest = fields.whole("max_completion_tokens", 1)
    streamed = fields.get("stream_options")
    tools, strange = read_tools(fields)
    model, effort = fields.text("model"), fields.text("reasoning_effort", "")
    sampling = Sampling(
        temperature=fields.number("temperature", 0, 2),
        top_p=fields.number("top_p", 0, 1),
        top_k=fields.whole("top_k", 0),  # this and the next two as vLLM and llama-server have them
        min_p=fields.number("min_p", 0, 1),
        repetition_penalty=fields.number("repetition_penalty", 0, 2),
        presence_penalty=fields.number("presence_penalty", -2, 2) or None,  # many send 0
        seed=fields.whole("seed", -(2**63)),
        stop=fields.texts("stop"),
        schema=read_schema(fields, "response_format"),
        tools=tools,
        tool_choice=read_choice(fields, tools),
        parallel=fields.get("parallel_tool_calls") is not False,
        effort=effort_of(model, effort),
    )
    return Asked(
        model,
        compose(said),
        sampling=sampling,
        max_tokens=fields.whole("max_tokens", 1) if longest is None else longest,
        stream=fields.flag("stream"),
        think=False if effort == "none" else None,
        ignored=fields.others([*KNOWN, *REFUSED]) + strange,
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


def read_tools(fields: Fields) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """The functions that are offered, and the names of what is offered beside them: what only
    OpenAI's own machines could do."""
    tools, strange = [], []
    for one in fields.objects("tools"):
        if (kind := one.text("type", "function")) != "function":
            strange.append(f"{one.name('type')} ({kind:.30})")
            continue
        inner = one.get("function")  # one level deeper here than in Responses
        tools.append(read_tool(one if inner is None else Fields(inner, one.name("function"))))
    return tuple(tools), tuple(strange)


def read_tool(one: Fields, schema: str = "parameters") -> Tool:
    """A function; its ``schema`` is in the field of that name."""
    given = one.get(schema)
    if given is not None and not isinstance(given, dict):
        raise one.wrong(schema, "a JSON schema")
    parameters = json.dumps(given or {"type": "object", "properties": {}}, ensure_ascii=False)
    return Tool(one.text("name"), one.text("description", ""), parameters)


def read_choice(fields: Fields, tools: tuple[Tool, ...]) -> str:
    """Which tool is to be called, as `Sampling.tool_choice` has it."""
    choice = fields.get("tool_choice")
    named = {"auto": "auto", "none": "none", "required": "any", None: "auto"}
    if choice is None or isinstance(choice, str):
        if choice not in named:
            raise fields.wrong("tool_choice", "auto, none, required or a function")
        return named[choice]
    one = Fields(choice, "tool_choice")
    inner = one.get("function")
    name = (one if inner is None else Fields(inner, one.name("function"))).text("name")
    if name not in {tool.name for tool in tools}:
        raise fields.wrong("tool_choice", "one of the tools")
    return name


def _read_message(one: Fields) -> ChatMessage:
    role = one.text("role")
    if role not in ("system", "developer", "user", "assistant", "tool"):
        raise one.wrong("role", "system, developer, user, assistant or tool")
    one.refuse({"audio": "answers are text", "function_call": "tool_calls took its place"})
    text = read_text(one, "content")
    if role == "tool":
        return ChatMessage(role, text, tool_call_id=one.text("tool_call_id"))
    calls = tuple(_read_call(call) for call in one.objects("tool_calls"))
    return ChatMessage("system" if role == "developer" else role, text, tool_calls=calls)


def _read_call(one: Fields) -> ToolCall:
    inner = Fields(one.get("function"), one.name("function"))
    arguments = read_arguments(inner.get("arguments") or {}, inner.name("arguments"))
    return ToolCall(one.text("id"), inner.text("name"), arguments)


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
        last = self._calls(turn)
        last += self._chunk([self._choice("", FINISH.get(turn.finish, "stop"))])
        if self._counted:
            last += self._chunk([], usage_of(turn.usage))
        return last + "data: [DONE]\n\n"

    def whole(self, turn: Turn, model: str) -> Document:
        self._model = model
        choice = self._whole_choice(turn)
        return self._document(self.KIND, [choice]) | {"usage": usage_of(turn.usage)}

    def _calls(self, turn: Turn) -> str:
        return ""

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

    def _calls(self, turn: Turn) -> str:
        calls = [{"index": at, **one} for at, one in enumerate(map(_describe_call, calls_of(turn)))]
        return self._delta({"tool_calls": calls}) if calls else ""

    def _delta(self, delta: Document) -> str:
        return self._chunk([{"index": 0, "delta": delta, "finish_reason": None}])

    def _choice(self, text: str, finish: str | None = None) -> Document:
        delta = {"content": text} if finish is None else {}
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}

    def _whole_choice(self, turn: Turn) -> Document:
        calls = [_describe_call(call) for call in calls_of(turn)]
        said = turn.answer or (None if calls else "")
        message: Document = {"role": "assistant", "content": said, "refusal": None}
        if calls:
            message["tool_calls"] = calls
        if turn.thoughts:
            message["reasoning_content"] = turn.thoughts
        finish = FINISH.get(turn.finish, "stop")
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}


def _describe_call(call: ToolCall) -> Document:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


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
