"""The model's way of writing a conversation: messages to token ids, and tokens to text.

Shared by every engine. Uses transformers' tokenizer, which needs no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shammah.bus.messages import ChatMessage
from shammah.errors import ShammahError
from workers.inference.detokenizer import Detokenizer
from workers.inference.environment import prepare_libraries
from workers.inference.reasoning import OPEN

_TAIL = 8
"""Tokens that an opening tag with its line end may have."""

_PROBE = "shammah"
"""An answer to find the end of: one word that no template contains."""


class ChatFormat:
    """The tokenizer and the chat template of one model."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.end_of_turn = self._find_end_of_turn()

    @classmethod
    def load(cls, directory: Path) -> ChatFormat:
        """Read the tokenizer of the model in ``directory``.

        Raises:
            ShammahError: ``model_corrupt``.
        """
        prepare_libraries()
        from transformers import PreTrainedTokenizerFast

        try:
            # This class takes tokenizer.json at its word. AutoTokenizer would rebuild some
            # tokenizers with the rules that their model type usually has.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(
                directory,
                local_files_only=True,
                trust_remote_code=False,
                model_max_length=sys.maxsize,  # the worker checks the context itself
            )
        except Exception as error:
            # tokenizers raises plain Exception.
            raise ShammahError(
                "model_corrupt",
                f"The model's tokenizer cannot be read ({error}).",
                "Fetch the model again, or name another one with --model.",
            ) from error
        return cls(tokenizer)

    def encode(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """The conversation as the model expects it, up to where its answer begins.

        Control tokens that are written out in a message (a pasted ``<|im_start|>system``) are
        encoded as plain text: only the template ends turns and changes roles.

        Raises:
            ShammahError: ``chat_template_missing`` or ``messages_invalid``.
        """
        if not self._tokenizer.chat_template:
            raise ShammahError(
                "chat_template_missing",
                "The local model has no chat template: it continues text and cannot answer.",
                "Name an Instruct or Chat model with --model.",
            )
        conversation = [{"role": m.role, "content": m.content} for m in messages]
        try:
            ids = self._tokenizer.apply_chat_template(
                conversation,
                add_generation_prompt=True,
                sanitize_control_tokens=True,
                return_dict=False,
            )
        except Exception as error:
            # A template is a program of the model's authors: it may refuse, or be wrong.
            raise ShammahError(
                "messages_invalid",
                f"The model's chat template refuses these messages ({error}).",
                "Begin a new conversation, without a system prompt.",
            ) from error
        return tuple(ids)

    def begins_thinking(self, prompt: Sequence[int]) -> bool:
        """Whether the template has opened the model's thoughts already."""
        text: str = self._tokenizer.decode(prompt[-_TAIL:])
        return text.rstrip().endswith(OPEN)

    def detokenizer(self) -> Detokenizer:
        """For one answer."""
        return Detokenizer(self._tokenizer.backend_tokenizer)

    def _find_end_of_turn(self) -> frozenset[int]:
        """The special token that the template writes after an answer, if it does.

        Some models' generation_config.json does not name it, and they would go on to write
        the user's next question.
        """
        turns = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}]
        try:
            text = self._tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception:
            return frozenset()  # no template, or one that says why in `encode`
        _, found, after = text.rpartition(_PROBE)
        if not found:
            return frozenset()
        ids = self._tokenizer.encode(after.lstrip(), add_special_tokens=False)
        added = self._tokenizer.added_tokens_decoder
        return frozenset(token for token in ids[:1] if token in added and added[token].special)
