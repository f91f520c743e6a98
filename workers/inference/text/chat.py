"""Messages to token ids, and tokens to text, as the model wants them. Shared by every engine."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from shammah.bus.messages import ChatMessage, Sampling, Tool
from shammah.errors import ShammahError
from workers.inference.scheduling.slots import common
from workers.inference.text.continuation import heal, split_begun
from workers.inference.text.detokenizer import Detokenizer, find_byte_tokens
from workers.inference.text.reasoning import CLOSING
from workers.inference.text.tools import as_documents, as_text, as_turns, writes_calls
from workers.text.model_text import ModelText, why_refused
from workers.text.sandbox import RefusalError, TemplateBoundError
from workers.text.thought_tags import CLOSE, OPEN

if TYPE_CHECKING:
    from workers.inference.engine import Constraint
    from workers.inference.text.grammar import Grammars

_TAIL = 16
"""Tokens that a tag with its line ends may have."""

_QUESTIONS = ("shammah", "1")
"""Two that have no beginning in common."""

_COUNTED = 65_536
"""Messages whose numbers of tokens are remembered, by their digests: some megabytes."""

FOLDED = "This model doesn't support system prompts, so yours was put before the first question."


class ChatFormat:
    """The tokenizer and the chat template of one model."""

    def __init__(self, text: ModelText) -> None:
        self._text = text
        self._grammars: Grammars | None = None
        self._byte_tokens = find_byte_tokens(text.tokenizer)
        self._counts: dict[bytes, int] = {}

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self._text.ends

    def notices(self, messages: Sequence[ChatMessage]) -> tuple[str, ...]:
        """Return the notices for the answer to the first of these questions."""
        roles = [message.role for message in messages]
        folded = self._text.folds_system and roles[:2] == ["system", "user"]
        return (FOLDED,) if folded and roles.count("user") == 1 else ()

    def hold(self, sampling: Sampling, room: int) -> tuple[Constraint, tuple[str, ...]]:
        """What an answer of ``room`` tokens is held to, and notices for the user.

        Raises:
            ShammahError: ``schema_not_enforced``, with the reason.
        """
        if self._grammars is None:
            from workers.inference.text.grammar import Grammars  # it brings llguidance

            self._grammars = Grammars(self._text, self._text.ends)
        return self._grammars.hold(sampling, room)

    def encode(
        self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = (), *, think: bool = False
    ) -> tuple[int, ...]:
        """Return the conversation as the model expects it, up to where its answer begins, or up to
        where it stops if the last message is the assistant's (`split_begun`).

        ``think``: what a template is told that can have the model think first, or not.

        Raises:
            ShammahError: ``chat_template_missing``, ``messages_invalid`` or ``model_corrupt``.
        """
        if self._text.template is None:
            raise ShammahError(
                "chat_template_missing",
                "The local model has no chat template, so it can only continue text.",
                "Choose an Instruct or Chat model with --model.",
            )
        whole, begun = split_begun(messages)
        try:
            if not whole:
                raise RefusalError("there are none")
            ids = self._encode_asked(whole, tools, think=think)
            if not ids:
                raise RefusalError("it makes nothing of them")
            if begun and self.begins_thinking(ids):
                ids += self._text.encode_written(f"{CLOSE}\n\n")
            return (*ids, *self.encode_begun(begun))
        except ShammahError:
            raise
        except Exception as error:
            # A template is a program of the model's authors: it may refuse, or be wrong. And
            # half a surrogate pair is nothing that a tokenizer takes.
            # Without earlier turns a new conversation would be the same.
            hopeless = isinstance(error, TemplateBoundError) or 0 < len(whole) < 3
            raise ShammahError(
                "messages_invalid",
                f"The model's chat template rejects these messages ({why_refused(error)}).",
                "Choose another model with --model." if hopeless else "Start a new conversation.",
            ) from error

    def count(self, message: ChatMessage) -> int:
        """Return about how many tokens a message takes among others; it is encoded only once.

        Raises:
            ShammahError: as `encode`.
        """
        calls = "".join(call.name + call.arguments for call in message.tool_calls)
        text = (message.content + calls).encode("utf-8", "replace")
        key = blake2b(text, digest_size=16).digest()
        if key not in self._counts:
            if len(self._counts) >= _COUNTED:
                del self._counts[next(iter(self._counts))]
            self._counts[key] = len(self._text.encode_text(text.decode()))
        return self._counts[key] + self._around

    @functools.cached_property
    def _around(self) -> int:
        """How many tokens the template puts around a message, on average, rounded up."""
        talk = [ChatMessage(role, "1") for role in ("user", "assistant", "user")]
        pair = len(self.encode(talk)) - len(self.encode(talk[2:]))
        return max(0, -(-pair // 2) - len(self._text.encode_text("1")))

    def _encode_asked(
        self, messages: Sequence[ChatMessage], tools: Sequence[Tool], *, think: bool
    ) -> list[int]:
        if tools or any(one.tool_calls or one.role == "tool" for one in messages):
            if self._text.template is not None and writes_calls(self._text.template.source):
                documents = as_documents(tools)
                return self._text.encode_documents(
                    as_turns(messages), documents, ask=True, think=think
                )
            messages = as_text(messages, tools)
        said = [(one.role, one.content) for one in messages]
        return self._text.encode(said, ask=True, think=think)

    def encode_begun(self, text: str) -> tuple[int, ...]:
        """Return the beginning of an answer, as the model would have written it.

        On its own, because the model has written it so: the template's last line end and a
        first line end of the answer are two tokens. What `heal` has cut off is not in it.
        """
        return tuple(self._text.encode_text(heal(text)[0]))

    def encode_earlier(self, turns: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Return what the prompt of any next question after ``turns`` begins with.

        Found by asking two questions, since what a template writes between turns only it knows.

        Raises:
            ShammahError: as `encode`.
        """
        one, other = (self.encode([*turns, ChatMessage("user", text)]) for text in _QUESTIONS)
        return one[: common(one, other)]

    def begins_thinking(self, prompt: Sequence[int]) -> bool:
        """Whether the template has opened the model's thoughts already."""
        return self._text.decode_all(prompt[-_TAIL:]).rstrip().endswith(OPEN)

    def may_think(self, prompt: Sequence[int]) -> bool:
        """Whether the model may think before it answers: its template knows of thoughts, and has
        not ended them already."""
        source = self._text.template.source if self._text.template is not None else ""
        ended = self._text.decode_all(prompt[-_TAIL:]).rstrip().endswith(CLOSE)
        return (OPEN in source or CLOSE in source) and not ended

    @property
    def closing(self) -> tuple[int, ...]:
        """The tokens that end thoughts from outside."""
        return tuple(self._text.encode_written(CLOSING))

    def detokenizer(self, begun: str = "") -> Detokenizer:
        """For one answer, or for the rest of one."""
        text = self._text
        return Detokenizer(text.decode, self._byte_tokens, self.encode_begun(begun))
