"""Which models mlx-lm's classes compute as they were trained, and the configuration to make one of.

Its classes ignore what they do not know of a configuration (its Phi does not know today's, and is
wrong without a word), so only those are used that a test compares with transformers, and what would
change the numbers of those is refused here. Imports nothing of mlx.
"""

from __future__ import annotations

from typing import Any

from shammah.errors import ShammahError
from workers.inference.packages.checkpoint import Checkpoint, read_configuration
from workers.inference.packages.llama_family import find_difference, read_rotary

MODULES = {
    **{name: name for name in "llama qwen2 qwen3 qwen3_moe mixtral olmo2 granite smollm3".split()},
    "mistral": "llama",
}
"""Model type to its module of ``mlx_lm.models``."""

_ROTARY = ("default", "linear", "llama3", "yarn")
"""The rotary scalings that are computed as transformers does."""

_DEFAULTS = {"rope_theta": 10_000.0, "rms_norm_eps": 1e-6}
"""transformers' own, for a configuration that does not say."""


def find_obstacle(checkpoint: Checkpoint) -> str:
    """Return why this model cannot be computed, as the end of "it ..."; empty: it can."""
    if checkpoint.model_type not in MODULES:
        return f"is a {checkpoint.architecture}, for which mlx has not been compared"
    try:
        config = read_configuration(checkpoint.directory)
    except ShammahError:
        return ""  # it is no whole model at all, which loading says better
    biases = checkpoint.model_type == "llama"
    return find_difference(checkpoint, config, _ROTARY, biases=biases)


def model_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the configuration as mlx-lm's classes read it.

    They look for the rotary embedding where transformers had it before its version 5. Whether the
    embedding is the output layer, too, is for the weights to say (see `Checkpoint`).

    Raises:
        ShammahError: see `read_configuration`.
    """
    config = read_configuration(checkpoint.directory)
    rotary = read_rotary(config)
    said = _DEFAULTS | {"num_key_value_heads": config.get("num_attention_heads")}
    said |= {name: value for name, value in config.items() if value is not None}
    if theta := rotary.get("rope_theta"):
        said["rope_theta"] = theta
    if "num_local_experts" in said:
        said.setdefault("num_experts", said["num_local_experts"])
    return said | {"rope_scaling": rotary or None, "tie_word_embeddings": checkpoint.tied}
