"""What was encoded once is not encoded again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from tests.real.models import IM_END, IM_START, make_tokenizer
from workers.text.model_text import ModelText
from workers.text.piece_cache import PieceCache

TALK = [("user", "hello  world \n"), ("assistant", "\nyes"), ("user", f" and {IM_END}\nyou?")]


def test_the_pieces_unused_for_longest_are_forgotten() -> None:
    encoded: list[str] = []

    def encode(piece: str) -> list[int]:
        encoded.append(piece)
        return [len(piece)]

    cache = PieceCache(encode, 10)
    for piece in ("aaaa", "bbbb", "aaaa", "cc", "dddd", "aaaa", "bbbb"):
        assert list(cache.encode(piece)) == [len(piece)]
    assert encoded == ["aaaa", "bbbb", "cc", "dddd", "bbbb"]
    assert list(cache.encode("e" * 100)) == [100]  # alone too long to be kept
    assert list(cache.encode("e" * 100)) == [100]
    assert encoded[5:] == ["e" * 100] * 2


def test_the_next_turn_of_a_conversation_encodes_what_is_new(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    text = ModelText.load(tmp_path)
    encoded: list[str] = []
    inner: Any = text.tokenizer

    class Counting(SimpleNamespace):
        def encode(self, piece: str, **options: Any) -> Any:
            encoded.append(piece)
            inner.encode_special_tokens = self.encode_special_tokens
            return inner.encode(piece, **options)

    counting: Any = Counting(encode_special_tokens=False)
    text.tokenizer = counting
    text.encode(TALK[:2], ask=True)
    encoded.clear()
    text.encode([*TALK[:2], ("user", "what else?")], ask=True)
    assert encoded == ["user\nwhat else?"]


@pytest.mark.parametrize("prefix", ["", "first", "always"])
@pytest.mark.parametrize("takes_blanks", [False, True])
def test_pieces_give_the_tokens_of_the_whole(
    tmp_path: Path, prefix: str, takes_blanks: bool
) -> None:
    """Also where the first piece is another's beginning, or a token takes the blanks around it."""
    make_tokenizer(tmp_path)
    path = str(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    if prefix:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Metaspace(prepend_scheme=prefix),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    if takes_blanks:
        tokenizer.add_special_tokens([AddedToken(IM_END, rstrip=True, special=True)])
    tokenizer.save(path)
    text = ModelText.load(tmp_path)
    talk = [*TALK[:2], ("user", " and you?")]
    written = "".join(f"{IM_START}{role}\n{said}{IM_END}\n" for role, said in talk)
    for _ in range(2):
        ids = text.encode(talk, ask=True)
        whole = f"{written}{IM_START}assistant\n"
        assert ids == tokenizer.encode(whole, add_special_tokens=False).ids
