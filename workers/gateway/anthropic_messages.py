"""Anthropic's ``/v1/messages``. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from shammah.bus.messages import ChatMessage, Sampling, Usage
from shammah.chat.turn import Turn
from workers.gateway.api import Document, event
from workers.gateway.asking import Asked, Said, compose
from workers.gateway.fields import Fields
from workers.gateway.openai_chat import read_schema
from workers.gateway.refusals import Dialect, invalid

KNOWN = (
    "model messages system stream temperature top_p top_k stop_sequences max_tokens thinking "
    "tool_choice metadata service_tier"
).split()
REFUSED = {
    "tools": "the answer is text only",
    "mcp_servers": "no other servers are asked",
    "container": "nothing is run here",
}
THINKS = {"enabled": True, "disabled": False, "adaptive": None}
STEERS = frozenset({"thinking", "redacted_thinking"})
"""Blocks of earlier answers that no other model can read."""
FINISH = {"stop": "end_turn", "length": "max_tokens", "timeout": "max_tokens", "refusal": "refusal"}


class MessagesApi:
    """``/v1/messages``."""

    dialect = Dialect.ANTHROPIC

    def read(self, fields: Fields) -> Asked:
        if fields.whole("max_tokens", 1) is None:
            raise fields.wrong("max_tokens", "given: a whole number, at least 1")
        config = Fields(fields.get("output_config") or {}, "output_config")
        thinking = Fields(fields.get("thinking") or {"type": "adaptive"}, "thinking")
        if (kind := thinking.text("type")) not in THINKS:
            raise thinking.wrong("type", "enabled, disabled or adaptive")
        ignored = fields.others([*KNOWN, *REFUSED, "output_config"])
        sampling = Sampling(
            temperature=fields.number("temperature", 0, 1),
            top_p=fields.number("top_p", 0, 1),
            top_k=fields.whole("top_k"),
            stop=fields.texts("stop_sequences"),
            schema=read_schema(config, "format"),
        )
        return Asked(
            fields.text("model"),
            read_messages(fields),
            sampling=sampling,
            max_tokens=fields.whole("max_tokens", 1),
            stream=fields.flag("stream"),
            think=THINKS[kind],
            ignored=ignored + tuple(f"output_config.{name}" for name in config.others(["format"])),
        )

    def writer(self, asked: Asked, number: str, now: int) -> MessageWriter:
        return MessageWriter(f"msg_{number}")


def read_messages(fields: Fields) -> tuple[ChatMessage, ...]:
    """The conversation of a request."""
    fields.refuse(REFUSED)
    said: list[Said] = [("system", text) for text in _read_content(fields, "system")]
    for one in fields.objects("messages"):
        if (role := one.text("role")) not in ("user", "assistant", "system"):
            raise one.wrong("role", "user or assistant")
        said += [(role, text) for text in _read_content(one, "content")]
    return compose(said)


def _read_content(fields: Fields, key: str) -> Iterator[str]:
    content = fields.get(key)
    if content is None or isinstance(content, str):
        yield content or ""
        return
    for block in fields.objects(key):
        kind = block.text("type")
        if kind in STEERS:
            continue
        if kind != "text":
            what = f"{block.name('type')} is {kind!r:.30}: only text can be read."
            raise invalid(what, block.name("type"))
        yield block.text("text")


class MessageWriter:
    """A message: thoughts in one block, the answer in the next."""

    def __init__(self, number: str) -> None:
        self._number = number
        self._blocks: list[str] = []

    def whole(self, turn: Turn, model: str) -> Document:
        thought = {"type": "thinking", "thinking": turn.thoughts, "signature": ""}
        content = [thought] if turn.thoughts else []
        content += [{"type": "text", "text": turn.answer}]
        finish = FINISH.get(turn.finish, "end_turn")
        return self._message(model, usage_of(turn.usage)) | {
            "content": content,
            "stop_reason": finish,
        }

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
        delta = {"stop_reason": FINISH.get(turn.finish, "end_turn"), "stop_sequence": None}
        ended = _event("message_delta", delta=delta, usage=usage_of(turn.usage))
        return self._leave() + ended + _event("message_stop")

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
