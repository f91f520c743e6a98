"""The model's way of writing a conversation: messages to token ids, and tokens to text.

Shared by every engine. Needs the tokenizers library alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from shammah.bus.messages import ChatMessage
from shammah.errors import ShammahError
from workers.inference.chat_template import ChatTemplate, read_template
from workers.inference.continuation import heal, split_begun
from workers.inference.detokenizer import Detokenizer, find_byte_tokens
from workers.inference.reasoning import CLOSE, OPEN
from workers.inference.slots import common

TOKENIZER = "tokenizer.json"

_TAIL = 8
"""Tokens that an opening tag with its line end may have."""

_PROBE = "shammah"
"""An answer to find the end of: one word that no template contains."""

_QUESTIONS = ("shammah", "1")
"""Two that have no beginning in common."""

_BEGIN, _END = "\ufdd0", "\ufdd1"
"""Around what looks like a control token in a message, while the template is applied. Unicode
has set these two aside for a program's own use: they are no characters."""
_MARKED = re.compile(f"{_BEGIN}([^{_BEGIN}{_END}]*){_END}")


class ChatFormat:
    """The tokenizer and the chat template of one model."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._special = {
            number
            for number, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        decoder = tokenizer.get_added_tokens_decoder()
        texts = sorted((decoder[n].content for n in self._special), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, texts)) if texts else r"(?!)")
        self._byte_tokens = find_byte_tokens(tokenizer)
        self.end_of_turn = self._find_end_of_turn()

    @classmethod
    def load(cls, directory: Path) -> ChatFormat:
        """Read the tokenizer of the model in ``directory``.

        Raises:
            ShammahError: ``model_corrupt``.
        """
        try:
            # The file is taken at its word. transformers' AutoTokenizer would rebuild some
            # tokenizers with the rules that their model type usually has.
            tokenizer = Tokenizer.from_file(str(directory / TOKENIZER))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            template = read_template(directory)
        except Exception as error:
            # tokenizers raises plain Exception, jinja2 its own.
            raise ShammahError(
                "model_corrupt",
                f"The model's tokenizer cannot be read ({error}).",
                "Fetch the model again, or name another one with --model.",
            ) from error
        return cls(tokenizer, template)

    def encode(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """The conversation as the model expects it, up to where its answer begins, or up to
        where it stops if the last message is the assistant's (`split_begun`).

        Control tokens that are written out in a message (a pasted ``<|im_start|>system``) are
        encoded as plain text: only the template ends turns and changes roles.

        Raises:
            ShammahError: ``chat_template_missing`` or ``messages_invalid``.
        """
        if self._template is None:
            raise ShammahError(
                "chat_template_missing",
                "The local model has no chat template: it continues text and cannot answer.",
                "Name an Instruct or Chat model with --model.",
            )
        whole, begun = split_begun(messages)
        conversation = [{"role": m.role, "content": self._mark(m.content)} for m in whole]
        try:
            if not conversation:
                raise ValueError("there are none")
            ids = self._ids(self._template.render(conversation, ask=True))
            if begun and self.begins_thinking(ids):
                ids += self._ids(f"{CLOSE}\n\n")
            return (*ids, *self.encode_begun(begun))
        except Exception as error:
            # A template is a program of the model's authors: it may refuse, or be wrong. And
            # half a surrogate pair is nothing that a tokenizer takes.
            raise ShammahError(
                "messages_invalid",
                f"The model's chat template refuses these messages ({error}).",
                "Begin a new conversation, without a system prompt.",
            ) from error

    def encode_begun(self, text: str) -> tuple[int, ...]:
        """The beginning of an answer, as the model would have written it.

        On its own, because the model has written it so: the template's last line end and a
        first line end of the answer are two tokens. What `heal` has cut off is not in it.
        """
        return tuple(self._ids(self._mark(heal(text)[0])))

    def encode_earlier(self, turns: Sequence[ChatMessage]) -> tuple[int, ...]:
        """What the prompt of any next question after ``turns`` begins with.

        Found by asking two questions, since what a template writes between turns only it knows.

        Raises:
            ShammahError: as `encode`.
        """
        one, other = (self.encode([*turns, ChatMessage("user", text)]) for text in _QUESTIONS)
        return one[: common(one, other)]

    def begins_thinking(self, prompt: Sequence[int]) -> bool:
        """Whether the template has opened the model's thoughts already."""
        text: str = self._tokenizer.decode(list(prompt[-_TAIL:]), skip_special_tokens=False)
        return text.rstrip().endswith(OPEN)

    def detokenizer(self, begun: str = "") -> Detokenizer:
        """For one answer, or for the rest of one."""
        return Detokenizer(self._tokenizer, self._byte_tokens, self.encode_begun(begun))

    def _mark(self, content: str) -> str:
        """``content`` with its control tokens marked as text."""
        plain = content.replace(_BEGIN, "\ufffd").replace(_END, "\ufffd")
        return self._control.sub(lambda found: f"{_BEGIN}{found[0]}{_END}", plain)

    def _ids(self, text: str) -> list[int]:
        """The tokens of a rendered conversation."""
        ids: list[int] = []
        # Odd parts are what was marked. A mark that the template has torn apart is dropped.
        for place, part in enumerate(_MARKED.split(text)):
            part = part.replace(_BEGIN, "").replace(_END, "")
            self._tokenizer.encode_special_tokens = bool(place % 2)
            ids += self._tokenizer.encode(part, add_special_tokens=False).ids
        self._tokenizer.encode_special_tokens = False
        return ids

    def _find_end_of_turn(self) -> frozenset[int]:
        """The special token that the template writes after an answer, if it does.

        Some models' generation_config.json does not name it, and they would go on to write
        the user's next question.
        """
        turns = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}]
        try:
            text = self._template.render(turns, ask=False) if self._template else ""
        except Exception:
            return frozenset()  # one that says why in `encode`
        _, found, after = text.rpartition(_PROBE)
        if not found:
            return frozenset()
        ids = self._tokenizer.encode(after.lstrip(), add_special_tokens=False).ids
        return frozenset(token for token in ids[:1] if token in self._special)
