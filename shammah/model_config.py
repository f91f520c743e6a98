"""What a model's ``config.json`` says about its size. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shammah.models import ModelShape

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number."""

_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "vocabulary": ("vocab_size",),
    "context_length": (
        *("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len"),
    ),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "intermediate": ("intermediate_size", "n_inner", "ffn_dim"),
}
"""What ``config.json`` calls it, in newer and older architectures."""

_LARGEST = 2**32
"""No dimension is larger; one that were would only make the sums overflow."""


def read_config(text: str) -> dict[str, Any]:
    """A ``config.json``.

    Raises:
        ValueError: it is none; the error completes "config.json ...".
    """
    if not text:
        raise ValueError("cannot be had")
    try:
        document = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ValueError("is not a JSON object")
    return document


def read_architecture(config: Mapping[str, Any]) -> str:
    """The class that the weights were saved from; empty: it is not named."""
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else ""
    return first if isinstance(first, str) else ""


def read_shape(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a ``config.json`` describes; what it leaves out is as transformers has it.

    Raises:
        ValueError: it does not describe a decoder; the error completes "config.json ...".
    """
    hidden, heads = _dimension(config, "hidden"), _dimension(config, "heads")
    return ModelShape(
        layers=_dimension(config, "layers"),
        hidden=hidden,
        intermediate=_dimension(config, "intermediate", 4 * hidden),
        heads=heads,
        kv_heads=_dimension(config, "kv_heads", heads),
        head_dim=_dimension(config, "head_dim", max(1, hidden // heads)),
        vocabulary=_dimension(config, "vocabulary"),
        context_length=_dimension(config, "context_length"),
        tied=config.get("tie_word_embeddings") is not False,
    )


def _dimension(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    values = (config[key] for key in _NAMES[name] if config.get(key) is not None)
    value = next(values, default)
    if type(value) is not int or not 0 < value < _LARGEST:
        told = "does not say" if value is None else f"gives {value!r:.40} as"
        raise ValueError(f"{told} {_NAMES[name][0]}")
    return value


def stored_width(config: Mapping[str, Any]) -> int:
    """Bytes of a parameter in the files; where nothing is said, they are float32.

    Raises:
        ValueError: nobody can tell; the error completes "config.json ...".
    """
    if config.get("quantization_config"):
        raise ValueError("says that the weights are quantised already, which is not supported")
    told = config.get("dtype") or config.get("torch_dtype") or "float32"
    if not isinstance(told, str) or told not in WIDTHS:
        raise ValueError(f"gives {told!r:.40} as dtype")
    return WIDTHS[told]
