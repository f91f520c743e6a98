"""Is this directory a whole model that can be loaded? Answered before any byte is loaded.

Half downloads, truncated shards and configurations that belong to other weights are found
here, from file sizes and headers alone, in milliseconds. No torch, no transformers.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shammah.errors import ShammahError
from workers.inference.safetensors_header import HeaderError, Tensor, read_header

MANIFEST = "shammah-manifest.json"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})$")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in)\.weight$")

_DIMENSIONS = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "max_position_embeddings": (
        *("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len"),
    ),
}
"""What every decoder's configuration says, with the names that older architectures use."""

_FETCH_AGAIN = "Fetch the model again, or name another one with --model."


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model directory that has been found whole.

    ``context_length`` is in tokens, ``weight_bytes`` the size of the safetensors files,
    ``parameters`` the number of weights in them, ``revision`` the commit it was fetched at
    (empty: not known).
    """

    directory: Path
    architecture: str
    model_type: str
    context_length: int
    weights: tuple[Path, ...]
    weight_bytes: int
    parameters: int
    revision: str


def inspect_checkpoint(directory: Path) -> Checkpoint:
    """Check everything about a model directory that can be checked without loading it.

    Raises:
        ShammahError: ``model_incomplete`` (a file is missing), ``model_corrupt`` (a file is
            not what it should be), ``model_config_invalid`` or ``model_unsupported``.
    """
    config = _read_json(directory / CONFIG, "model_config_invalid")
    architecture = _architecture(config)
    dimensions = _dimensions(config)
    manifest = _check_manifest(directory)
    _check_tokenizer(directory)
    tensors = _check_weights(directory)
    every = [tensor for found in tensors.values() for tensor in found]
    _check_embedding(every, dimensions)
    return Checkpoint(
        directory=directory,
        architecture=architecture,
        model_type=str(config.get("model_type", "")),
        context_length=dimensions["max_position_embeddings"],
        weights=tuple(tensors),
        weight_bytes=sum(path.stat().st_size for path in tensors),
        parameters=sum(tensor.elements for tensor in every),
        revision=_revision(directory, manifest),
    )


# --- the configuration --------------------------------------------------------------------


def _architecture(config: dict[str, Any]) -> str:
    """The class that the weights were saved from."""
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise _config_invalid("does not name an architecture")
    architecture: str = named[0]
    if not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise ShammahError(
            "model_unsupported",
            f"{CONFIG} describes a {architecture}, which is not a text generation model.",
            "Name a model whose architecture ends in ForCausalLM.",
        )
    if config.get("quantization_config"):
        raise ShammahError(
            "model_unsupported",
            f"The weights of this {architecture} are quantised already, which is not supported.",
            "Name the model's original (unquantised) repository.",
        )
    return architecture


def _dimensions(config: dict[str, Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, spellings in _DIMENSIONS.items():
        value = next((config[key] for key in spellings if key in config), None)
        if type(value) is not int or value < 1:
            raise _config_invalid(f"gives {value!r} as {name}; a positive number was expected")
        found[name] = value
    heads, kv_heads = found["num_attention_heads"], config.get("num_key_value_heads")
    if kv_heads is not None and (type(kv_heads) is not int or kv_heads < 1 or heads % kv_heads):
        raise _config_invalid(f"has {heads} attention heads, but {kv_heads!r} key-value heads")
    return found


def _check_embedding(tensors: list[Tensor], dimensions: dict[str, int]) -> None:
    """Whether the configuration belongs to these weights."""
    table = next((tensor for tensor in tensors if _EMBEDDING.search(tensor.name)), None)
    if table is None or len(table.shape) != 2:
        return  # an architecture with other names; the engine compares every shape
    told = (dimensions["vocab_size"], dimensions["hidden_size"])
    if table.shape != told:
        raise _config_invalid(
            f"says {told[0]} tokens of {told[1]} numbers, but the weights hold "
            f"{table.shape[0]} of {table.shape[1]} ({table.name})"
        )


# --- the files ----------------------------------------------------------------------------


def _check_manifest(directory: Path) -> dict[str, Any] | None:
    path = directory / MANIFEST
    if not path.exists():
        return None
    manifest = _read_json(path, "model_corrupt")
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise ShammahError("model_corrupt", f"{MANIFEST} lists no files.", _FETCH_AGAIN)
    for name, facts in files.items():
        expected = facts.get("size") if isinstance(facts, dict) else None
        size = _size(directory / name)
        if size != expected:
            why = f"{name} has {size} bytes instead of {expected}."
            raise ShammahError("model_corrupt", why, _FETCH_AGAIN)
    return manifest


def _check_tokenizer(directory: Path) -> None:
    if (directory / TOKENIZER).exists():
        return
    others = ("tokenizer.model", "vocab.json", "tekken.json")
    found = [name for name in others if (directory / name).exists()]
    if found:
        raise ShammahError(
            "model_unsupported",
            f"The model has {found[0]} but no {TOKENIZER}, the one form that is supported.",
            "Name a model that has been published with a tokenizer.json.",
        )
    raise _incomplete(directory / TOKENIZER)


def _check_weights(directory: Path) -> dict[Path, tuple[Tensor, ...]]:
    """Every safetensors file of the model with its tensors."""
    if (directory / SINGLE).exists():
        return {directory / SINGLE: _tensors(directory / SINGLE)}
    if (directory / INDEX).exists():
        return _check_shards(directory)
    others = [*directory.glob("pytorch_model*.bin"), *directory.glob("*.gguf")]
    if others:
        raise ShammahError(
            "model_unsupported",
            f"The weights are in {others[0].name}; only safetensors files are loaded.",
            "Name a model that has been published as safetensors.",
        )
    raise _incomplete(directory / SINGLE)


def _check_shards(directory: Path) -> dict[Path, tuple[Tensor, ...]]:
    places = _read_json(directory / INDEX, "model_corrupt").get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ShammahError("model_corrupt", f"{INDEX} names no tensors.", _FETCH_AGAIN)
    if any(not isinstance(name, str) or Path(name).name != name for name in places.values()):
        raise ShammahError("model_corrupt", f"{INDEX} names no files.", _FETCH_AGAIN)
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
        raise ShammahError(
            "model_corrupt", f"{why} ({len(lost)} tensors are lost so).", _FETCH_AGAIN
        )
    return shards


def _tensors(path: Path) -> tuple[Tensor, ...]:
    try:
        return read_header(path)
    except HeaderError as error:
        raise ShammahError(
            "model_corrupt", f"{path.name} is damaged: {error}.", _FETCH_AGAIN
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _revision(directory: Path, manifest: dict[str, Any] | None) -> str:
    if manifest and isinstance(manifest.get("revision"), str):
        return str(manifest["revision"])
    snapshot = _SNAPSHOT.search(directory.absolute().as_posix())
    return snapshot[1] if snapshot else ""


def _read_json(path: Path, code: str) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise _incomplete(path) from None
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        why = f"{path.name} is not JSON ({error})."
        raise ShammahError(code, why, _FETCH_AGAIN) from error
    if not isinstance(document, dict):
        raise ShammahError(code, f"{path.name} is not a JSON object.", _FETCH_AGAIN)
    return document


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise _incomplete(path) from None
    except OSError as error:
        raise _unreadable(path, error) from error


def _incomplete(path: Path, detail: str = "") -> ShammahError:
    why = f"The model in {path.parent} has no {path.name}" + (f" ({detail})." if detail else ".")
    return ShammahError("model_incomplete", why, _FETCH_AGAIN)


def _unreadable(path: Path, error: OSError) -> ShammahError:
    why = f"{path.name} cannot be read ({error.strerror or error})."
    return ShammahError("model_corrupt", why, "Check the file's permissions and the disk.")


def _config_invalid(why: str) -> ShammahError:
    return ShammahError("model_config_invalid", f"{CONFIG} {why}.", _FETCH_AGAIN)
