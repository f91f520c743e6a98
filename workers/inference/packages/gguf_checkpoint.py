"""Is this GGUF file, with its further parts, a whole model that generates text?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NoReturn

from shammah.errors import ShammahError
from shammah.models.catalogue import FETCH_AGAIN, ModelShape
from shammah.models.gguf_files import part_names
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.packages.gguf import MAX_TENSORS, OTHER, Header, Tensor, read_header
from workers.manifest import commit_of

_ARCHITECTURE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LARGEST = 2**32

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"

_OTHERS = {
    "clip": "a projector of images",
    "whisper": "a model of speech",
    "t5encoder": "an encoder",
    "wavtokenizer-dec": "a model of sound",
}
"""Architectures of what generates no text; embeddings are told by how they pool."""


def inspect_gguf(path: Path) -> Checkpoint:
    """Check everything about a GGUF file that can be checked without its tensors.

    Args:
        path: the file, or any part of a model in several.

    Raises:
        ShammahError: ``model_incomplete`` (a part is missing), ``model_corrupt`` or
            ``model_unsupported``.
    """
    parts = _parts(path)
    first = parts[0]
    header = read_header(first)
    _check_kind(first, header)
    tensors = _tensors(header, parts)
    architecture = header.text("general.architecture")
    shape = _shape(first, header, tensors)
    return Checkpoint(
        directory=first.parent,
        architecture=architecture,
        model_type=architecture,
        context_length=shape.context_length,
        weights=parts,
        weight_bytes=sum(part.stat().st_size for part in parts),
        parameters=sum(tensor.elements for tensor in tensors.values()),
        revision=commit_of(first),
        tied=shape.tied,
        shape=shape,
        format="gguf",
    )


def _parts(path: Path) -> tuple[Path, ...]:
    """Return the files of a model, the first one first."""
    parts = tuple(path.with_name(name) for name in part_names(path.name))
    missing = [part for part in parts if not part.exists()]
    if missing:
        why = f"{len(missing)} of {len(parts)} parts are missing"
        message = f"The model in {path.parent} has no {missing[0].name} ({why})."
        raise ShammahError("model_incomplete", message, FETCH_AGAIN)
    return parts


def _check_kind(path: Path, header: Header) -> None:
    """Refuse what generates no text."""
    architecture, kind = header.text("general.architecture"), header.text("general.type")
    if kind == "adapter":
        _refuse(path, "holds an adapter, not a model", "Name its base model with --model.")
    if kind not in ("", "model"):
        _refuse(path, f"holds no text generation model, but is of the type {kind!r:.40}")
    if not _ARCHITECTURE.fullmatch(architecture):
        _refuse(path, f"names no architecture ({architecture!r:.40})")
    if architecture in _OTHERS:
        what = _OTHERS[architecture]
        _refuse(path, f"holds {what} ({architecture}), which generates no text")
    pools = any(header.numbers(f"{architecture}.pooling_type"))
    causal = header.numbers(f"{architecture}.attention.causal")
    if pools or not all(causal):
        _refuse(path, f"holds a model of embeddings ({architecture}), which generates no text")


def _tensors(header: Header, parts: tuple[Path, ...]) -> dict[str, Tensor]:
    """Return the tensors of all parts by their names; ``header`` is that of the first one."""
    first, split = parts[0], header.numbers("split.count")
    if split and split[0] > 1 and split[0] != len(parts):
        why = f"is one of {split[0]:,} parts, but its name does not say so"
        _refuse(first, why, "Give the parts the names under which they were published.")
    tensors, count = {tensor.name: tensor for tensor in header.tensors}, len(header.tensors)
    for part in parts[1:]:
        further = read_header(part).tensors
        tensors |= {tensor.name: tensor for tensor in further}
        count += len(further)
        if count > MAX_TENSORS:
            _damaged(part, f"and the parts before hold more than {MAX_TENSORS:,} tensors")
    stated = header.numbers("split.tensors.count")
    if len(tensors) < count or (len(parts) > 1 and stated and stated[0] != count):
        _damaged(first, f"and its parts hold {count:,} tensors, which do not fit together")
    if not tensors:
        _refuse(first, "holds no weights, only a vocabulary")
    if _EMBEDDING not in tensors:
        _refuse(first, f"holds no text generation model: it has no {_EMBEDDING}")
    return tensors


def _shape(path: Path, header: Header, tensors: dict[str, Tensor]) -> ModelShape:
    prefix = header.text("general.architecture")

    def stated(key: str, default: int | None = None) -> int:
        """The largest, where the layers differ."""
        values = header.numbers(f"{prefix}.{key}")
        value = max(values, default=default)
        if type(value) is not int or not 0 <= value < _LARGEST or (default is None and not value):
            told = "does not say" if value is None else f"gives {value!r:.40} as"
            _damaged(path, f"{told} {prefix}.{key}")
        return value or default or 0

    hidden = stated("embedding_length")
    heads = stated("attention.head_count", 1)
    table = tensors[_EMBEDDING].shape
    if len(table) != 2 or table[1] != hidden:
        _damaged(path, f"says {hidden} numbers a token, but its {_EMBEDDING} has {table!r}")
    shape = ModelShape(
        layers=stated("block_count"),
        hidden=hidden,
        intermediate=stated("feed_forward_length", 4 * hidden),
        heads=heads,
        kv_heads=stated("attention.head_count_kv", heads),
        head_dim=stated("attention.key_length", max(1, hidden // heads)),
        vocabulary=table[0],
        context_length=stated("context_length"),
        tied=_HEAD not in tensors,
    )
    if shape.kv_heads > heads:
        _damaged(path, f"says {heads} attention heads, but {shape.kv_heads} key-value heads")
    if shape.layers > len(tensors):
        _damaged(path, f"says {shape.layers} layers, but holds {len(tensors)} tensors")
    return shape


def _refuse(path: Path, why: str, hint: str = OTHER) -> NoReturn:
    raise ShammahError("model_unsupported", f"{path.name} {why}.", hint)


def _damaged(path: Path, why: str) -> NoReturn:
    raise ShammahError("model_corrupt", f"{path.name} {why}.", FETCH_AGAIN)
