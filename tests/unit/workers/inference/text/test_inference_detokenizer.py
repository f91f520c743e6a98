"""Streaming text is whole characters, and is the same text, whatever tokens a model chooses."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from tests.real.models import IM_END, IM_START, VOCABULARY, make_tokenizer
from workers.inference.text.detokenizer import Detokenizer, find_byte_tokens

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
HI, BLANK = 1, 2


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def fallback() -> Tokenizer:
    """As Llama 2's: unknown characters are spelt as one token a byte."""
    pieces = ["<unk>", "\u2581hi", "\u2581", *(f"<0x{byte:02X}>" for byte in range(256)), "\ufffd"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    replace = decoders.Replace("\u2581", " ")
    tokenizer.decoder = decoders.Sequence(
        [replace, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer.decode, find_byte_tokens(tokenizer))
    return [detokenizer.add(token) for token in ids]


def _bytes(data: bytes) -> list[int]:
    return [3 + byte for byte in data]


# Surrogates are no text: they cannot be written as UTF-8.
@given(st.text(st.characters(exclude_categories=["Cs"])))
@example(f"na\u00efve {FAMILY} \u65e5\u672c \U0001f1eb\U0001f1f7 end")
@example("a\ufffdb")
def test_any_text_comes_back_in_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    parts = _stream(tokenizer, tokenizer.encode(text).ids)
    assert "".join(parts) == text.removesuffix("\ufffd")


@given(st.lists(st.integers(0, VOCABULARY - 1)))
def test_any_tokens_give_what_decode_gives(tokenizer: Tokenizer, ids: list[int]) -> None:
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(_stream(tokenizer, ids)) == whole.removesuffix("\ufffd")


def test_a_character_is_held_until_it_is_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a\U0001f680b").ids
    assert len(ids) == 6  # the rocket has four bytes, and no token of its own
    assert _stream(tokenizer, ids) == ["a", "", "", "", "\U0001f680", "b"]


def test_half_a_character_at_the_end_is_dropped(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a\U0001f680").ids
    assert "".join(_stream(tokenizer, ids[:-1])) == "a"


def test_special_tokens_give_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(f"{IM_START}user{IM_END}x").ids
    assert "".join(_stream(tokenizer, ids)) == "userx"


def test_bytes_as_tokens_are_joined(fallback: Tokenizer) -> None:
    parts = _stream(fallback, [HI, *_bytes("\U0001f680".encode()), HI])
    assert parts == ["hi", "", "", "", "\U0001f680", " hi"]


@pytest.mark.parametrize(
    ("ids", "parts"),
    [
        ([*_bytes(b"\xc3\xa9\xff"), HI], ["", "\u00e9", "\ufffd", " hi"]),
        ([*_bytes(b"\xc3\xa9\xc3"), HI], ["", "\u00e9", "", "\ufffd hi"]),
        ([HI, *_bytes(b"\xe2\x82"), HI, HI], ["hi", "", "", "\ufffd hi", " hi"]),
        ([*_bytes(b"\xe2\xc3\xa9")], ["", "\ufffd", "\u00e9"]),
        ([HI, *_bytes(b"\xc3")], ["hi", ""]),
        ([*_bytes(b"a"), BLANK, HI, 259, *_bytes(b"b")], ["a", " ", " hi", "", "\ufffdb"]),
    ],
)
def test_bytes_that_form_no_character_harm_nothing_else(
    fallback: Tokenizer, ids: list[int], parts: list[str]
) -> None:
    assert _stream(fallback, ids) == parts


@given(st.lists(st.one_of(st.just(HI), st.integers(0, 259))))
@example([197, 259])
def test_any_bytes_and_words_give_text(fallback: Tokenizer, ids: list[int]) -> None:
    text = "".join(_stream(fallback, ids))
    spelt = b"".join(
        bytes([token - 3])
        if 3 <= token < 259
        else ["<unk>", " hi", " ", "\ufffd"][token % 256].encode()
        for token in ids
    )
    whole = spelt.decode("utf-8", "replace").removeprefix(
        " " if ids and ids[0] in (HI, BLANK) else ""
    )
    assert whole.startswith(text)
    # Half a character at the end, and U+FFFD after it, which may be the half of another one.
    assert len(whole) - len(text) <= 2
    assert not whole[len(text) :].strip("\ufffd")


def test_a_decoder_that_rewrites_what_it_had_written_takes_nothing_back() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "X")])
    assert tokenizer.decode([0, 1, 2]) == "Xc"
    assert _stream(tokenizer, [0, 1, 2, 2]) == ["a", "b", "c", "c"]


def test_names_of_bytes_are_text_where_the_decoder_takes_them_for_text() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<0x41>": 0, "[UNK]": 1}, unk_token="[UNK]"))
    assert find_byte_tokens(tokenizer) == {}
    assert _stream(tokenizer, [0]) == ["<0x41>"]
