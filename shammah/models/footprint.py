"""What a model weighs: the numbers that the worker and ``models plan`` both reckon with. Pure."""

from __future__ import annotations

from shammah.models.catalogue import GIB, ModelShape
from shammah.models.hub_config import WIDTHS

LIBRARIES_BYTES = 512 * 1024**2
"""torch, transformers and the tokenizer: 354 MiB were measured with the starter (resident size
of the loaded inference worker without its weights; torch 2.13 for the CPU, transformers 5.23,
x86-64), and the tokenizer of Qwen2.5, three times as large, takes some 65 MiB more."""

HEADROOM_BYTES = GIB // 2
"""For the cache of keys and values, activations and the libraries, in addition to the weights."""

PREFILL_CHUNK = 256
"""Tokens of a prompt that are computed in one step on a CPU."""

LEAST_CONTEXT = 2048
"""Tokens. With less, a model can hardly hold a conversation."""

SHORT_CONTEXT = 4096
"""Tokens of the context after a step down."""

KV_SHARE = 0.5
"""Of the memory that is free after the load, for keys and values. The rest is for activations,
and for others."""

NATIVE_FAMILY = ("Qwen2ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM")
"""What the native engine computes on a CPU."""

INT8, INT4 = "int8", "int4"
"""The weights of that engine; it keeps keys and values in 16 bits and computes in 32."""

BITS = {INT8: "8-bit weights", INT4: "4-bit weights"}
"""For people."""

NATIVE_WEIGHT_BYTES = {INT8: 1.07, INT4: 0.75}
"""Memory of a weight, and its share of a scale. In ``int4`` not all have 4 bits."""

_FOUR_BITS, _EIGHT_BITS = 0.57, 1.04
"""The same where all have."""


def published_bytes(shape: ModelShape, parameters: int) -> int:
    """Memory of weights whose layers were published in 4 bits: they keep them, and the tables of
    tokens get 8."""
    tables = min(parameters, token_tables(shape))
    return int(_EIGHT_BITS * tables + _FOUR_BITS * (parameters - tables))


def token_tables(shape: ModelShape) -> int:
    """How many numbers the embedding and the output layer have, which may be one."""
    return shape.vocabulary * shape.hidden * (1 if shape.tied else 2)


def kv_bytes(shape: ModelShape, tokens: int, width: int) -> int:
    """The keys and the values of ``tokens`` tokens, in every layer, for every kept head.

    Source: Shazeer, "Fast Transformer Decoding" (2019); Ainslie et al., "GQA" (2023).
    """
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * tokens * width


def activation_bytes(shape: ModelShape, tokens: int, width: int) -> int:
    """A bound of what one step takes with ``tokens`` tokens in the conversation.

    - The chunk's hidden states, eight at once (residual, norm, query, keys, values and copies),
      and three of the feed-forward width (gate, up, their product).
    - Its attention scores in float32: kernels that fuse attention never hold them, others do.
    - The logits of the last token in float32.
    """
    stream = PREFILL_CHUNK * (8 * shape.hidden + 3 * shape.intermediate) * width
    scores = shape.heads * PREFILL_CHUNK * tokens * WIDTHS["float32"]
    logits = shape.vocabulary * WIDTHS["float32"]
    return stream + scores + logits
