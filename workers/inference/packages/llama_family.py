"""How a model differs from the decoders of the Llama family that engines have kernels for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from workers.inference.packages.checkpoint import Checkpoint

_WINDOWS = {"MistralForCausalLM": 4096, "MixtralForCausalLM": None}
"""Whose ``sliding_window`` is used; the value is transformers' where nothing is said."""


def read_rotary(config: dict[str, Any]) -> dict[str, Any]:
    """Return what is said of the rotary embedding, in both places where it may be."""
    return {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}


def find_difference(
    checkpoint: Checkpoint, config: dict[str, Any], scalings: Collection[str], *, biases: bool
) -> str:
    """Return what would be computed in another way or left out, as the end of "it ..."; empty:
    nothing. ``scalings``: the rotary ones that are computed; ``biases``: whether those that
    Llama's configuration names are."""
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        return f"uses the activation {activation}, not silu"
    for name in () if biases else ("attention_bias", "mlp_bias"):
        if config.get(name):
            return f"has biases that are not supported ({name})"
    if config.get("use_sliding_window") or {*(config.get("layer_types") or ())} - {
        "full_attention"
    }:
        return "uses sliding window attention"
    if checkpoint.architecture in _WINDOWS:
        window = config.get("sliding_window", _WINDOWS[checkpoint.architecture])
        if window is not None and window < checkpoint.context_length:
            return f"uses sliding window attention ({window} tokens)"
    rotary = read_rotary(config)
    if rotary.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        return "applies rotary embeddings to only part of each head"
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    return "" if kind in scalings else f"uses a rotary scaling that is not supported ({kind})"
