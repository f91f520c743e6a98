"""What a model's ``config.json`` says about its size. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from shammah.models.catalogue import ModelShape

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number."""

_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "vocabulary": ("vocab_size",),
    "context_length": (
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "seq_length",
        "max_seq_len",
    ),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "intermediate": ("intermediate_size", "n_inner", "ffn_dim"),
}
"""What ``config.json`` calls it, in newer and older architectures."""

_CLASS_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "max_position_embeddings": 32_768,
        "num_key_value_heads": 32,
        "tie_word_embeddings": False,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "max_position_embeddings": 32_768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
}
"""By model type, what transformers' configuration class has where ``config.json`` says nothing."""

_NEEDED = _NAMES["context_length"]
"""Without it no model can be used: null is no answer."""

_LARGEST = 2**32
"""No dimension is larger; one that were would only make the sums overflow."""


def read_config(text: str) -> dict[str, Any]:
    """A ``config.json``, completed with the defaults of its model type's class where those are
    known here.

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
    return complete(document, lambda model_type: _CLASS_DEFAULTS.get(model_type, {}))


def complete(
    config: Mapping[str, Any], defaults_of: Callable[[str], Mapping[str, Any]]
) -> dict[str, Any]:
    """``config`` with what its model type's class has where it says nothing itself, in any
    spelling. An architecture or a context length that is null counts as not said."""
    model_type = config.get("model_type")
    said = {key for key, value in config.items() if value is not None or key not in _NEEDED}
    if not read_architecture(config):
        said.discard("architectures")
    spellings = {name: every for every in _NAMES.values() for name in every}
    defaults = defaults_of(model_type) if isinstance(model_type, str) else {}
    added = {
        name: value
        for name, value in defaults.items()
        if said.isdisjoint(spellings.get(name, (name,)))
    }
    return {**config, **added}


def lacks(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` names no architecture or no context length."""
    return not read_architecture(config) or all(config.get(name) is None for name in _NEEDED)


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
    _check_window(config)
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


def _check_window(config: Mapping[str, Any]) -> None:
    """Refuse a window over which nothing can be attended to, where one is used."""
    window, layers = config.get("sliding_window"), config.get("layer_types")
    slides = isinstance(layers, list) and "sliding_attention" in layers
    if window is None and slides and "sliding_window" in config:
        raise ValueError("asks for sliding_attention, but does not say sliding_window")
    usual = not str(config.get("model_type")).startswith("qwen")
    used = slides or config.get("use_sliding_window", usual)
    if used and window is not None and (type(window) is not int or window < 1):
        raise ValueError(f"gives {window!r:.40} as sliding_window")


def stored_width(config: Mapping[str, Any]) -> int:
    """Bytes of a number in the files that is not quantised; where nothing is said, it is float32.

    Raises:
        ValueError: nobody can tell; the error completes "config.json ...".
    """
    told = config.get("dtype") or config.get("torch_dtype") or "float32"
    if not isinstance(told, str) or told not in WIDTHS:
        raise ValueError(f"gives {told!r:.40} as dtype")
    return WIDTHS[told]
