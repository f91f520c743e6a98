"""GGUF files: small models, damaged headers, and headers made to take memory."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

from workers.inference.packages.gguf import Header, HeaderError, parse_header

KINDS = ("B", "b", "H", "h", "I", "i", "f", "?", "s", "a", "Q", "q", "d")
"""By the number of a type: its code in `struct`, ``s`` for texts and ``a`` for arrays."""

TINY: Mapping[str, Any] = {
    "general.architecture": "llama",
    "general.type": "model",
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.tokens": ["<s>", "</s>", "a", "\u2581b"],
    "tokenizer.ggml.eos_token_id": 1,
}
TENSORS: Sequence[tuple[str, tuple[int, ...], int]] = (
    ("token_embd.weight", (32, 4), 8),
    ("blk.0.attn_q.weight", (32, 32), 2),
    ("output_norm.weight", (32,), 0),
)
"""Name, dimensions (the fastest first), number format; Q8_0, Q4_0 and F32."""

SIZES = {0: (1, 4), 1: (1, 2), 2: (32, 18), 8: (32, 34)}
"""Of a number format: numbers in a block, bytes of a block."""

NUMBERS = (0, 1, 2, 31, 2**16, 2**24, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)

Defect = Callable[[Random, bytes], bytes]


def gguf_file(
    metadata: Mapping[str, Any] = TINY,
    tensors: Sequence[tuple[str, tuple[int, ...], int]] = TENSORS,
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A file of zeros with this header."""
    described, at = b"", 0
    for name, shape, kind in tensors:
        described += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, at)
        block, size = SIZES[kind]
        elements = 1
        for dimension in shape:
            elements *= dimension
        at += elements // block * size
        at += -at % alignment
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + typed(value) for key, value in metadata.items()) + described
    return head + bytes(-len(head) % alignment + at)


def text(value: str) -> bytes:
    """A text, its length in front."""
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def typed(value: Any) -> bytes:
    """A value with its type in front."""
    match value:
        case bytes():  # as it is
            return value
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + text(value)
        case list() if value and isinstance(value[0], str):
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    return struct.pack(f"<IIQ{len(value)}I", 9, 4, len(value), *value)


def parse(content: bytes) -> Header | str:
    """The header of a file, or the sentence that refuses it.

    Raises:
        AssertionError: a tensor of it lies outside of the file.
    """
    try:
        header = parse_header(io.BytesIO(content), len(content))
    except HeaderError as error:
        return str(error)
    for tensor in header.tensors:
        assert 0 < tensor.begin <= tensor.end <= len(content)
    return header


# --- damaged ones -------------------------------------------------------------------------


def damaged(random: Random) -> bytes:
    """The header of a file that may be anything."""
    content = gguf_file(_any_metadata(random)) if random.random() < 0.5 else gguf_file()
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        content = random.choice(_DEFECTS)(random, content)
    return content


def _any_metadata(random: Random) -> dict[str, Any]:
    some = {f"k{index}": _any_value(random, 0) for index in range(random.randrange(6))}
    return {**dict(random.sample(list(TINY.items()), random.randrange(len(TINY)))), **some}


def _any_value(random: Random, depth: int) -> bytes:
    kind = random.choice((0, 4, 7, 8, 9, 9, 9, 10, 12))
    return struct.pack("<I", kind) + _any_content(random, kind, depth)


def _any_content(random: Random, kind: int, depth: int) -> bytes:
    if kind == 8:
        return text("x" * random.randrange(20))
    if kind != 9:
        return random.randbytes(struct.calcsize(KINDS[kind]))
    inner, count = random.choice((0, 4, 8, 9, 10)), random.randrange(4)
    inner = 4 if inner == 9 and depth > 5 else inner
    content = b"".join(_any_content(random, inner, depth + 1) for _ in range(count))
    return struct.pack("<IQ", inner, count) + content


def _flip(random: Random, content: bytes) -> bytes:
    return _put(random, content, bytes([random.randrange(256)]))


def _number(random: Random, content: bytes) -> bytes:
    number = random.choice(NUMBERS)
    packed = struct.pack("<Q", number)
    return _put(random, content, packed if random.random() < 0.5 else packed[:4])


def _count(random: Random, content: bytes) -> bytes:
    """Other numbers of tensors and keys."""
    counts = struct.pack("<QQ", random.choice((3, *NUMBERS)), random.choice((12, *NUMBERS)))
    return content[:8] + counts + content[24:]


def _cut(random: Random, content: bytes) -> bytes:
    return content[: random.randrange(len(content) + 1)]


def _insert(random: Random, content: bytes) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + random.randbytes(random.randrange(1, 40)) + content[at:]


def _drop(random: Random, content: bytes) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + content[at + random.randrange(1, 40) :]


def _repeat(random: Random, content: bytes) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + content[at : at + random.randrange(1, 200)] + content[at:]


def _put(random: Random, content: bytes, new: bytes) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + new + content[at + len(new) :]


_DEFECTS: Sequence[Defect] = (_flip, _number, _number, _count, _cut, _insert, _drop, _repeat)


# --- those that would take memory ----------------------------------------------------------


def bombs() -> Iterator[tuple[str, bytes]]:
    """Headers as large as they may be, by what they are full of."""
    room = 31 * 1024**2
    yield "empty texts, kept", _one_array(8, bytes(room), room // 8)
    yield "short texts, kept", _one_array(8, (text("ab")) * (room // 10), room // 10)
    yield "numbers, kept", _one_array(0, bytes(room), room)
    short = struct.pack("<IIQ", 9, 8, 1024) + text("\U0001f642" * 2) * 1024
    yield "short arrays", gguf_file({f"k{index}": short for index in range(room // len(short))})
    wide = typed("a" * 900 + "\U0001f642")
    yield "texts", gguf_file({f"k{index}": wide for index in range(4000)})
    many = {f"k{index}": short for index in range(room // len(short) - 250)}
    most = {f"{index}{'k' * 600}\U0001f642": wide for index in range(1400)}
    tensors = [(f"{index}{'t' * 90}\U0001f642", (1, 1, 1, 1), 0) for index in range(16_000)]
    yield "all of these", gguf_file({**many, **most}, tensors)
    emoji = [(f"{index}{'t' * 200}\U0001f642", (1, 1, 1, 1), 0) for index in range(16_000)]
    yield "tensors", gguf_file(TINY, emoji)


def _one_array(kind: int, content: bytes, count: int) -> bytes:
    return gguf_file({"whole": struct.pack("<IIQ", 9, kind, count) + content}, ())
