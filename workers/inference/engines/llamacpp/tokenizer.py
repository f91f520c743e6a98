"""Text and tokens by the rules of a GGUF file, as llama.cpp applies them."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from shammah.bus.record import record
from shammah.errors import ShammahError
from shammah.models.catalogue import FETCH_AGAIN
from workers.inference.engines.llamacpp.library import open_library
from workers.inference.engines.llamacpp.models import Model, read_model
from workers.inference.packages.checkpoint import Checkpoint
from workers.text.chat_template import ChatTemplate
from workers.text.model_text import ModelText, why_refused

_UNKNOWN, _NORMAL, _CONTROL, _USER_DEFINED = 1, 4, 8, 16
"""Attributes of tokens in llama.h."""

_ADDED = _UNKNOWN | _CONTROL | _USER_DEFINED

_LONGEST_PIECE = 64
"""Bytes; for a longer token llama.cpp says how long it is."""

_LINE, _PROBE = "\n", "a"


@dataclass(slots=True)
class Token:
    """An added token; a ``special`` one is text where it is asked to be."""

    content: str
    special: bool
    normalized: bool = False


@record
class Encoding:
    """The tokens of a text."""

    ids: list[int]


class GGUFTokenizer:
    """See `workers.text.model_text.Tokenizer`. The added tokens are those that llama.cpp looks
    for in a text before anything else.

    Args:
        model: one that has a vocabulary; may be without weights.
    """

    normalizer = None
    """llama.cpp looks for control tokens in the text as it is written."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._library, self._vocabulary = model.library, model.vocabulary
        self._size: int = self._library.llama_vocab_n_tokens(self._vocabulary)
        attribute = self._library.llama_vocab_get_attr
        attributes = [attribute(self._vocabulary, token) for token in range(self._size)]
        self._added = {
            token: Token(self._text(token), not attribute & _USER_DEFINED)
            for token, attribute in enumerate(attributes)
            if attribute & _ADDED
        }
        # Most tokens are words, which nobody looks up.
        self._known = {
            self._text(token): token
            for token, attribute in enumerate(attributes)
            if not attribute & _NORMAL
        }
        self._shielded = re.compile("(?!)")
        self.encode_special_tokens = False
        self._line = self._ids(_LINE)
        self._pieces: dict[int, bytes] = {}
        self._opens_with_blank = self.piece(self._ids(_PROBE)[0]).startswith(b" ")

    # --- text to tokens -------------------------------------------------------------------

    def encode(self, text: str, /, *, add_special_tokens: bool = False) -> Encoding:
        if not self.encode_special_tokens:
            return Encoding(self._ids(text, parse=True))
        # llama.cpp takes a token that is said to be the user's own for one in any text. Its
        # first character apart from the others is text.
        first, *rest = self._shielded.split(text)
        ids = self._ids(first) if first else []
        for part in rest:
            ids += self._within_line(part)
        return Encoding(ids)

    def add_special_tokens(self, tokens: Iterable[Any], /) -> int:
        """Have tokens written out as text where control tokens are; none is made."""
        texts = [token.content for token in tokens if token.content]
        own = {one.content: one for one in self._added.values() if not one.special}
        found = [text for text in texts if text in own]
        for text in found:
            own[text].special = True
        if found:
            found.sort(key=len, reverse=True)
            parts = (f"(?<={re.escape(text[:1])})(?={re.escape(text[1:])})" for text in found)
            self._shielded = re.compile("|".join([self._shielded.pattern, *parts]))
        return 0

    def _ids(self, text: str, *, parse: bool = False) -> list[int]:
        data = text.encode("utf-8")
        ids = np.empty(len(data) + 8, np.int32)
        source = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p)
        split = partial(self._library.llama_tokenize, self._vocabulary, source, len(data))
        count = split(ids.ctypes.data, len(ids), False, parse)
        if count < 0:
            raise ValueError("llama.cpp cannot tokenize the text")
        found: list[int] = ids[:count].tolist()
        return found

    def _within_line(self, text: str) -> list[int]:
        """The tokens of a text that others stand before."""
        ids, length = self._ids(_LINE + text), len(self._line)
        return ids[length:] if ids[:length] == self._line else self._ids(text)

    # --- tokens to text -------------------------------------------------------------------

    def decode(self, ids: Sequence[int], /, *, skip_special_tokens: bool = True) -> str:
        hidden = self._added if skip_special_tokens else {}
        shown = [token for token in ids if not ((added := hidden.get(token)) and added.special)]
        data = b"".join(map(self.piece, shown))
        if self._opens_with_blank:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; of a control token its name."""
        if token not in self._pieces:
            self._pieces[token] = self._read_piece(token)
        return self._pieces[token]

    def _read_piece(self, token: int) -> bytes:
        read = partial(self._library.llama_token_to_piece, self._vocabulary, token)
        buffer = ctypes.create_string_buffer(_LONGEST_PIECE)
        length = read(buffer, len(buffer), 0, True)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = read(buffer, len(buffer), 0, True)
        return buffer.raw[: max(0, length)]

    # --- the vocabulary -------------------------------------------------------------------

    def token_to_id(self, token: str, /) -> int | None:
        """The number of a token that is not a word; a word's is not looked up."""
        return self._known.get(token)

    def id_to_token(self, token_id: int, /) -> str | None:
        return self._text(token_id) if 0 <= token_id < self._size else None

    def get_vocab_size(self, *, with_added_tokens: bool = True) -> int:
        return self._size

    def get_added_tokens_decoder(self) -> dict[int, Token]:
        return {token: replace(one) for token, one in self._added.items()}

    def _text(self, token: int) -> str:
        text: bytes = self._library.llama_vocab_get_text(self._vocabulary, token) or b""
        return text.decode("utf-8", "replace")


def read_text(checkpoint: Checkpoint) -> ModelText:
    """See `EngineSpec.read_text`. Of several files the first has it all.

    Raises:
        ShammahError: ``model_corrupt`` or ``engine_unavailable``.
    """
    library = open_library()
    model = read_model(library, checkpoint.weights[:1], vocabulary_only=True)
    tokenizer = GGUFTokenizer(model)
    size = tokenizer.get_vocab_size()
    numbers = {
        "bos_token": library.llama_vocab_bos(model.vocabulary),
        "eos_token": library.llama_vocab_eos(model.vocabulary),
    }
    found = {name: tokenizer.id_to_token(number) for name, number in numbers.items()}
    names = {name: token for name, token in found.items() if token}
    source: bytes | None = library.llama_model_chat_template(model.pointer, None)
    try:
        template = ChatTemplate(source.decode("utf-8", "replace"), names) if source else None
    except Exception as error:  # the template is a program of the model's authors
        name = checkpoint.weights[0].name
        why = f"The chat template of {name} cannot be used ({why_refused(error)})."
        raise ShammahError("model_corrupt", why, FETCH_AGAIN) from error
    text = ModelText(tokenizer, template, names, vocabulary=size)
    is_end = library.llama_vocab_is_eog
    text.ends |= {token for token in range(size) if is_end(model.vocabulary, token)}
    return text
