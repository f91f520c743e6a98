"""Streaming text is whole characters, and is the same text."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from tests.workers.models import IM_END, IM_START, VOCABULARY, make_tokenizer
from workers.inference.detokenizer import Detokenizer

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def _stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.add(token) for token in ids), detokenizer.finish()]


# Surrogates are no text: they cannot be written as UTF-8.
@given(st.text(st.characters(exclude_categories=["Cs"])))
@example(f"na\u00efve {FAMILY} \u65e5\u672c \U0001f1eb\U0001f1f7 end")
@example("a\ufffdb")
def test_any_text_comes_back_in_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    parts = _stream(tokenizer, tokenizer.encode(text).ids)
    assert "".join(parts) == text.rstrip("\ufffd")


@given(st.lists(st.integers(0, VOCABULARY - 1)))
def test_any_tokens_give_what_decode_gives(tokenizer: Tokenizer, ids: list[int]) -> None:
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(_stream(tokenizer, ids)) == whole.rstrip("\ufffd")


def test_a_character_is_held_until_it_is_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a\U0001f680b").ids
    assert len(ids) == 6  # the rocket has four bytes, and no token of its own
    assert _stream(tokenizer, ids) == ["a", "", "", "", "\U0001f680", "b", ""]


def test_half_a_character_at_the_end_is_dropped(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a\U0001f680").ids
    assert "".join(_stream(tokenizer, ids[:-1])) == "a"


def test_special_tokens_give_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(f"{IM_START}user{IM_END}x").ids
    assert "".join(_stream(tokenizer, ids)) == "userx"


def test_bytes_as_tokens_are_joined() -> None:
    """Models made with SentencePiece spell unknown characters as one token per byte."""
    pieces = ["<unk>", "\u2581hi", "\u2581", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    replace = decoders.Replace("\u2581", " ")
    tokenizer.decoder = decoders.Sequence(
        [replace, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    rocket = [vocabulary[f"<0x{byte:02X}>"] for byte in "\U0001f680".encode()]
    parts = _stream(tokenizer, [1, *rocket, 1])
    assert parts == ["hi", "", "", "", "\U0001f680", " hi", ""]
