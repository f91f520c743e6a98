"""Is this directory or file a whole model that can be loaded? Answered before any byte is loaded.

Half downloads, truncated shards and configurations that belong to other weights are found
here, from file sizes and headers alone, in milliseconds. No torch, no transformers.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from shammah.bus.record import record
from shammah.errors import ShammahError
from shammah.models.catalogue import FETCH_AGAIN, ModelShape
from shammah.models.hub_config import read_architecture, read_shape
from shammah.models.published_bits import USE_ORIGINAL, PublishedBits, read_published_bits
from workers.inference.packages.published_layers import (
    WORDS,
    PublishedLayer,
    count_parameters,
    find_layers,
)
from workers.inference.packages.safetensors_header import HeaderError, Tensor, read_header
from workers.manifest import commit_of
from workers.model_classes import read_model_config

MANIFEST = "shammah-manifest.json"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"

Format = Literal["safetensors", "awq", "gptq", "gguf"]
"""How a model's weights are stored; the two in the middle in safetensors files, quantised."""

_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in)\.weight$")

_HEAD = re.compile(r"(?:^|\.)lm_head\.weight$")

_READ = {".json", ".jinja", ".safetensors"}

_LARGEST_JSON = 32 * 1024**2
"""Bytes. The index of a model in 163 files has 9 MB."""

_BLOCK_BYTES = 4 * 1024**2
"""Of two tensors that are compared."""

_CORRECT = "Correct the file if it is yours, or choose another model with --model."


@record
class Checkpoint:
    """A model that has been found whole: a directory, or files in it.

    ``format``: how the weights are stored; ``weights``: the files, the first one first.
    ``context_length`` is in tokens, ``weight_bytes`` the size of these files, ``parameters`` the
    number of weights in them, ``revision`` the commit it was fetched at (empty: not known).
    ``tied``: whether the embedding is also the output layer. ``notices`` are sentences about how
    the files were read, for people. ``shape`` is the configuration's.
    """

    directory: Path
    architecture: str
    model_type: str
    context_length: int
    weights: tuple[Path, ...]
    weight_bytes: int
    parameters: int
    revision: str
    tied: bool = False
    notices: tuple[str, ...] = ()
    shape: ModelShape | None = None
    format: Format = "safetensors"


def inspect_checkpoint(path: Path) -> Checkpoint:
    """Check everything about a model directory, or a GGUF file, that can be checked without
    loading it.

    Raises:
        ShammahError: ``model_incomplete`` (a file is missing), ``model_corrupt`` (a file is
            not what it should be), ``model_config_invalid`` or ``model_unsupported``.
    """
    if path.is_file():
        from workers.inference.packages.gguf_checkpoint import inspect_gguf  # it makes a Checkpoint

        return inspect_gguf(path)
    directory = path
    _check_kinds(directory)
    config = read_configuration(directory)
    architecture = _architecture(config)
    shape = _shape(config)
    manifest = _check_manifest(directory)
    _check_tokenizer(directory)
    tensors = _check_weights(directory)
    every = [tensor for found in tensors.values() for tensor in found]
    _check_embedding(every, shape)
    bits, layers = read_layers(config, every)
    tied, notice = _read_head(config, tensors)
    return Checkpoint(
        directory=directory,
        architecture=architecture,
        model_type=str(config.get("model_type", "")),
        context_length=shape.context_length,
        weights=tuple(tensors),
        weight_bytes=sum(path.stat().st_size for path in tensors),
        parameters=count_parameters(every, layers),
        revision=_revision(directory, manifest),
        tied=tied,
        notices=tuple(one for one in (notice, _notice_of_adapter(directory)) if one),
        shape=shape,
        format="safetensors" if bits is None else bits.format,
    )


def read_layers(
    config: dict[str, Any], tensors: list[Tensor]
) -> tuple[PublishedBits | None, dict[str, PublishedLayer]]:
    """The layers that were published in 4 bits, if any were, and how.

    Raises:
        ShammahError: ``model_unsupported`` or ``model_config_invalid``.
    """
    try:
        bits = read_published_bits(config)
    except ValueError as error:
        raise ShammahError("model_unsupported", f"{CONFIG} {error}.", USE_ORIGINAL) from error
    if bits is None:
        words = next((one.name for one in tensors if one.name.endswith(WORDS)), "")
        if words:
            raise _config_invalid(f"does not say how {words} is quantised (quantization_config)")
        return None, {}
    try:
        return bits, find_layers(tensors, bits)
    except ValueError as error:
        raise ShammahError("model_config_invalid", f"The weights {error}.", _CORRECT) from error


def read_configuration(directory: Path) -> dict[str, Any]:
    """The ``config.json``, completed with the defaults of its model type's class.

    Raises:
        ShammahError: ``model_incomplete``, ``model_corrupt`` or ``model_config_invalid``.
    """
    try:
        return read_model_config(_read(directory / CONFIG).decode("utf-8-sig", "replace"))
    except ValueError as error:
        raise _config_invalid(str(error)) from error


# --- the configuration --------------------------------------------------------------------


def _architecture(config: dict[str, Any]) -> str:
    """Return the class that the weights were saved from."""
    architecture = read_architecture(config)
    if not architecture:
        raise _config_invalid(
            "names no architecture, and there is no text generation model of its model type "
            f"({config.get('model_type')!r:.80})"
        )
    if not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise ShammahError(
            "model_unsupported",
            f"{CONFIG} describes a {architecture}, which is not a text generation model.",
            "Choose a model whose architecture ends in ForCausalLM.",
        )
    return architecture


def _shape(config: dict[str, Any]) -> ModelShape:
    try:
        shape = read_shape(config)
    except ValueError as error:
        raise _config_invalid(str(error)) from error
    if shape.heads % shape.kv_heads:
        raise _config_invalid(
            f"has {shape.heads} attention heads, but {shape.kv_heads} key-value heads"
        )
    return shape


def _check_embedding(tensors: list[Tensor], shape: ModelShape) -> None:
    """Whether the configuration belongs to these weights."""
    table = next((tensor for tensor in tensors if _EMBEDDING.search(tensor.name)), None)
    stated = (shape.vocabulary, shape.hidden)
    # Of an architecture with other names the engine compares every shape.
    if table is not None and len(table.shape) == 2 and table.shape != stated:
        raise _config_invalid(
            f"says {stated[0]} tokens of {stated[1]} numbers, but the weights hold "
            f"{table.shape[0]} of {table.shape[1]} ({table.name})"
        )
    if shape.layers > len(tensors):
        raise _config_invalid(
            f"says {shape.layers} layers, but the weights hold {len(tensors)} tensors"
        )


def _read_head(config: dict[str, Any], files: dict[Path, tuple[Tensor, ...]]) -> tuple[bool, str]:
    """Whether the embedding is the output layer, too, and a notice if that was in doubt.

    The weights decide, as in transformers: a merged fine-tune may have an output layer of its own
    and a configuration that was copied from the model before.
    """
    if not config.get("tie_word_embeddings"):
        return False, ""
    places = [(path, tensor) for path, found in files.items() for tensor in found]
    table = next((one for one in places if _EMBEDDING.search(one[1].name)), None)
    head = next((one for one in places if _HEAD.search(one[1].name)), None)
    if table is None or head is None or _are_equal(_stamp(table), _stamp(head)):
        return True, ""
    return False, (
        f"{CONFIG} sets tie_word_embeddings, but the weights have an output layer of their own "
        f"({head[1].name}), which is used."
    )


def _stamp(place: tuple[Path, Tensor]) -> tuple[Path, Tensor, int]:
    """With the time of the file's last change."""
    path, tensor = place
    return path, tensor, path.stat().st_mtime_ns


@functools.lru_cache(maxsize=4)
def _are_equal(one: tuple[Path, Tensor, int], other: tuple[Path, Tensor, int]) -> bool:
    """Whether two tensors hold the same bytes. Different ones differ soon."""
    (_, left, _), (_, right, _) = one, other
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    return all(a == b for a, b in zip(_blocks(*one[:2]), _blocks(*other[:2]), strict=True))


def _blocks(path: Path, tensor: Tensor) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(tensor.begin)
        for begin in range(tensor.begin, tensor.end, _BLOCK_BYTES):
            yield file.read(min(_BLOCK_BYTES, tensor.end - begin))


def _notice_of_adapter(directory: Path) -> str:
    if not (directory / ADAPTER).exists():
        return ""
    return (
        f"The model's directory also holds an adapter ({ADAPTER}), which is not used. "
        f"`shammah adapters import {shlex.quote(str(directory))}` imports it."
    )


# --- the files ----------------------------------------------------------------------------


def _check_kinds(directory: Path) -> None:
    """A pipe that nobody writes into, or a device, would be read for ever."""
    for path in sorted(directory.glob("*")):
        if path.suffix in _READ and path.exists() and not (path.is_file() or path.is_dir()):
            why = f"{path.name} is a pipe or a device, not a file."
            raise ShammahError("model_corrupt", why, FETCH_AGAIN)


def _check_manifest(directory: Path) -> dict[str, Any] | None:
    path = directory / MANIFEST
    if not path.exists():
        return None
    manifest = _read_json(path)
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise ShammahError("model_corrupt", f"{MANIFEST} lists no files.", FETCH_AGAIN)
    for name, facts in files.items():
        expected = facts.get("size") if isinstance(facts, dict) else None
        size = _size(directory / name)
        if size != expected:
            why = f"{name} has {size} bytes instead of {expected}."
            raise ShammahError("model_corrupt", why, FETCH_AGAIN)
    return manifest


def _check_tokenizer(directory: Path) -> None:
    if (directory / TOKENIZER).exists():
        return
    others = ("tokenizer.model", "vocab.json", "tekken.json")
    found = [name for name in others if (directory / name).exists()]
    if found:
        raise ShammahError(
            "model_unsupported",
            f"The model has {found[0]} but no {TOKENIZER}, the only supported format.",
            "Choose a model published with a tokenizer.json.",
        )
    raise _incomplete(directory / TOKENIZER)


def _check_weights(directory: Path) -> dict[Path, tuple[Tensor, ...]]:
    """Return every safetensors file of the model with its tensors."""
    if (directory / SINGLE).exists():
        return {directory / SINGLE: _tensors(directory / SINGLE)}
    if (directory / INDEX).exists():
        return _check_shards(directory)
    others = [*directory.glob("pytorch_model*.bin"), *directory.glob("*.gguf")]
    if others:
        raise ShammahError(
            "model_unsupported",
            f"The weights are in {others[0].name}, but only safetensors files are supported.",
            "Choose a model published as safetensors.",
        )
    if (directory / ADAPTER).exists():
        raise ShammahError(
            "model_unsupported",
            f"{directory} holds an adapter ({ADAPTER}), not a model.",
            f"Name its base model with --model, and import it with "
            f"`shammah adapters import {shlex.quote(str(directory))}`.",
        )
    raise _incomplete(directory / SINGLE)


def _check_shards(directory: Path) -> dict[Path, tuple[Tensor, ...]]:
    places = _read_json(directory / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ShammahError("model_corrupt", f"{INDEX} names no tensors.", FETCH_AGAIN)
    if any(not isinstance(name, str) or Path(name).name != name for name in places.values()):
        raise ShammahError("model_corrupt", f"{INDEX} names no files.", FETCH_AGAIN)
    names = sorted(set(places.values()))
    missing = [directory / name for name in names if not (directory / name).exists()]
    if missing:
        raise _incomplete(missing[0], f"{len(missing)} of {len(names)} weight files are missing")
    shards = {directory / name: _tensors(directory / name) for name in names}
    held = {(tensor.name, path.name) for path, found in shards.items() for tensor in found}
    lost = sorted(set(places.items()) - held)
    if lost:
        tensor, shard = lost[0]
        why = f"{shard} does not hold {tensor!r}, which {INDEX} says is there"
        raise ShammahError("model_corrupt", f"{why} ({len(lost)} such tensors).", FETCH_AGAIN)
    return shards


def _tensors(path: Path) -> tuple[Tensor, ...]:
    try:
        return read_header(path)
    except HeaderError as error:
        raise ShammahError(
            "model_corrupt", f"{path.name} is damaged: {error}.", FETCH_AGAIN
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _revision(directory: Path, manifest: dict[str, Any] | None) -> str:
    if manifest and isinstance(manifest.get("revision"), str):
        return str(manifest["revision"])
    return commit_of(directory)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        why = f"{path.name} is not JSON ({error})."
        raise ShammahError("model_corrupt", why, FETCH_AGAIN) from error
    if not isinstance(document, dict):
        raise ShammahError("model_corrupt", f"{path.name} is not a JSON object.", FETCH_AGAIN)
    return document


def _read(path: Path) -> bytes:
    if _size(path) > _LARGEST_JSON:
        why = f"{path.name} has {_size(path):,} bytes, but at most {_LARGEST_JSON:,} are allowed."
        raise ShammahError("model_corrupt", why, FETCH_AGAIN)
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise _incomplete(path) from None
    except OSError as error:
        raise _unreadable(path, error) from error


def _incomplete(path: Path, detail: str = "") -> ShammahError:
    why = f"The model in {path.parent} has no {path.name}" + (f" ({detail})." if detail else ".")
    return ShammahError("model_incomplete", why, FETCH_AGAIN)


def _unreadable(path: Path, error: OSError) -> ShammahError:
    why = f"{path.name} cannot be read ({error.strerror or error})."
    return ShammahError("model_corrupt", why, "Check the file's permissions and the disk.")


def _config_invalid(why: str) -> ShammahError:
    return ShammahError("model_config_invalid", f"{CONFIG} {why}.", _CORRECT)


def digest_of_files(purpose: str, paths: Iterable[Path]) -> str:
    """A name for what is made for ``purpose`` from these files, as they are now (path, size, time
    of change)."""
    digest = hashlib.sha256(purpose.encode())
    for path in paths:
        real = path.resolve()
        found = real.stat()
        digest.update(f"\n{real} {found.st_size} {found.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]
