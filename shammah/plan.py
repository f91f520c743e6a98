"""What a model will cost before its first byte arrives. Pure: all measures are passed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shammah.errors import ShammahError

LIBRARIES_BYTES = 600 * 1024**2
"""Resident memory of the inference worker with torch and transformers and no model."""

DISK_MARGIN_BYTES = 1024**3
"""Left free for everything else, or a tenth of the download where that is more."""

PREFILL_CHUNK = 256
"""Prompt tokens computed at once (`workers.inference.transformers_engine`)."""

USABLE_CONTEXT = 2048
"""A model that cannot hold this many tokens beside its weights is not worth loading."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers of a decoder-only transformer that decide its memory."""

    parameters: int
    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocabulary: int
    context_length: int

    def weights_bytes(self, width: int) -> int:
        """Bytes of the weights at ``width`` bytes a parameter."""
        return self.parameters * width

    def kv_bytes(self, tokens: int, width: int) -> int:
        """Bytes of the KV cache: a key and a value per layer, KV head and token.

        ``2 * layers * kv_heads * head_dim * tokens * width`` (Shazeer 2019, arXiv:1911.02150,
        with grouped heads after Ainslie et al. 2023, arXiv:2305.13245).
        """
        return 2 * self.layers * self.kv_heads * self.head_dim * tokens * width

    def activation_bytes(self, width: int) -> int:
        """Bytes of the largest temporaries of one prefill chunk, an upper bound.

        Per token: residual, normed input and attention output (3 x hidden), gate, up and
        their product (3 x intermediate); and one row of logits, in float32.
        """
        per_token = 3 * self.hidden + 3 * self.intermediate
        return PREFILL_CHUNK * per_token * width + 4 * self.vocabulary

    def memory_bytes(self, tokens: int, width: int) -> int:
        """Weights, KV cache of ``tokens`` tokens, activations and the libraries."""
        return (
            self.weights_bytes(width)
            + self.kv_bytes(tokens, width)
            + self.activation_bytes(width)
            + LIBRARIES_BYTES
        )


def shape_of(config: Mapping[str, Any], weights_bytes: int) -> ModelShape:
    """The shape that a ``config.json`` describes; the weights are taken as 16 bits wide.

    Raises:
        ShammahError: ``model_config_invalid``.
    """
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return ModelShape(
            parameters=weights_bytes // 2,
            layers=int(config["num_hidden_layers"]),
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            hidden=hidden,
            intermediate=int(config.get("intermediate_size") or 4 * hidden),
            vocabulary=int(config["vocab_size"]),
            context_length=int(config.get("max_position_embeddings") or USABLE_CONTEXT),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ShammahError(
            "model_config_invalid",
            f"The model's config.json does not describe a language model ({error!r}).",
            "Name another model.",
        ) from error


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine has: bytes, and bytes per second of the last download (0: none yet)."""

    memory: int
    disk_free: int
    download_rate: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """What getting and running one model costs. ``refusals`` is empty when it fits.

    ``width``: bytes a parameter as held in memory. ``seconds`` is ``None`` while no rate is
    known.
    """

    model: str
    revision: str
    licence: str
    total_bytes: int
    fetch_bytes: int
    disk_left: int
    width: int
    memory_at_load: int
    memory_at_full_context: int
    context_length: int
    seconds: float | None
    refusals: tuple[str, ...]


def plan_model(
    model: str,
    revision: str,
    licence: str,
    total_bytes: int,
    fetch_bytes: int,
    shape: ModelShape,
    machine: Machine,
) -> ModelPlan:
    """Weigh a model against a machine.

    The weights are held as float32 where that fits at the usable context (a CPU without
    16-bit arithmetic computes it fastest), else in 16 bits.
    """
    usable = min(USABLE_CONTEXT, shape.context_length)
    width = 4 if shape.memory_bytes(usable, 4) <= machine.memory else 2
    disk_left = machine.disk_free - fetch_bytes
    refusals = []
    margin = max(DISK_MARGIN_BYTES, fetch_bytes // 10)
    if fetch_bytes and disk_left < margin:
        refusals.append(
            f"It needs {fetch_bytes / 1e9:.1f} GB of disk and {margin / 1e9:.1f} GB to spare; "
            f"{machine.disk_free / 1e9:.1f} GB are free."
        )
    needed = shape.memory_bytes(usable, width)
    if needed > machine.memory:
        refusals.append(
            f"It needs {needed / 1e9:.1f} GB of memory for {usable:,} tokens of context; "
            f"there are {machine.memory / 1e9:.1f} GB."
        )
    return ModelPlan(
        model=model,
        revision=revision,
        licence=licence,
        total_bytes=total_bytes,
        fetch_bytes=fetch_bytes,
        disk_left=disk_left,
        width=width,
        memory_at_load=shape.memory_bytes(0, width),
        memory_at_full_context=shape.memory_bytes(shape.context_length, width),
        context_length=shape.context_length,
        seconds=fetch_bytes / machine.download_rate if machine.download_rate else None,
        refusals=tuple(refusals),
    )
