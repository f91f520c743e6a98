"""Turns the tokens of one answer into text as they come, in whole characters."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are no character, such as half of one."""


class Detokenizer:
    """One per answer. What it returns, joined, is the decoded answer.

    Special tokens give no text. Half a character is held back until its other half has come;
    at the end it is dropped. ``begun``: tokens that the answer has already; they give no text,
    but a token's text can depend on whether it is the first (the blank before a word).
    """

    def __init__(self, tokenizer: Tokenizer, begun: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._written = 0  # characters
        for token_id in begun:
            self.add(token_id)

    def add(self, token_id: int) -> str:
        """The text that ``token_id`` completes; empty while a character is incomplete."""
        self._ids.append(token_id)
        text: str = self._stream.step(self._tokenizer, token_id) or ""
        self._written += len(text)
        return text

    def finish(self) -> str:
        """What was held back and is whole."""
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        rest = text[self._written :].rstrip(_REPLACEMENT)
        self._written += len(rest)
        return rest
