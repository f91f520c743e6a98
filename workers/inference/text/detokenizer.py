"""Turns the tokens of one answer into text as they come, in whole characters."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it brings jinja2
    from workers.text.model_text import Tokenizer

_REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are no character, such as half of one."""

_PRINTABLE = range(0x21, 0x7F)


def find_byte_tokens(tokenizer: Tokenizer) -> dict[int, int]:
    """The byte of each token that stands for one (``<0xE2>``): SentencePiece's byte fallback.

    Empty unless the tokenizer's decoder takes them for bytes.
    """
    found: dict[int, int] = {}
    for byte in range(256):
        token = tokenizer.token_to_id(f"<0x{byte:02X}>")
        if token is not None:
            found[token] = byte
    printable = [(token, byte) for token, byte in found.items() if byte in _PRINTABLE]
    decoded = any(tokenizer.decode([token]) == chr(byte) for token, byte in printable)
    return found if decoded else {}


class Detokenizer:
    """One per answer. What it returns, joined, is the decoded answer.

    Special tokens give no text. Half a character is held back until its other half has come;
    at the end it is dropped. Bytes that form no character give U+FFFD, and what was returned
    before stays as it is: the library's own stream fails there, because its decoder takes back
    the characters before them.

    Args:
        decode: tokens to text, without the special ones.
        byte_tokens: see `find_byte_tokens`.
        begun: tokens that the answer has already; they give no text, but a token's text can
            depend on whether it is the first (the blank before a word).
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        byte_tokens: Mapping[int, int],
        begun: Sequence[int] = (),
    ) -> None:
        self._decode = decode
        self._byte_tokens = byte_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._window: list[int] = []  # what was returned last, and all that came since
        self._returned = 0  # tokens of the window
        self._text = ""  # of the window: what was returned
        for token_id in begun:
            self.add(token_id)

    def add(self, token_id: int) -> str:
        """The text that ``token_id`` completes; empty while a character is incomplete."""
        byte = self._byte_tokens.get(token_id)
        if byte is None:
            self._window.append(token_id)
            return self._take(whole=False)
        held = self._take(whole=True)
        # A window of its own: the decoder would judge all bytes of a run together.
        self._window, self._returned = [token_id], 1
        self._text = self._decode(self._window)
        return held + self._utf8.decode(bytes((byte,)))

    def _take(self, *, whole: bool) -> str:
        """The window's new text; unless ``whole``, without half a character at its end."""
        text = self._decode(self._window)
        if not text.startswith(self._text):  # a decoder that rewrites what came before
            text = self._text + self._decode(self._window[self._returned :])
        complete = whole or not text.endswith(_REPLACEMENT)
        new = (text if complete else text[:-1])[len(self._text) :]
        if not new:
            return ""
        self._text += new
        if complete:
            self._window = self._window[self._returned :]
            self._returned = len(self._window)
            self._text = self._decode(self._window)
        return self._utf8.decode(b"", final=True) + new
