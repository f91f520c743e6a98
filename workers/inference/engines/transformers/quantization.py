"""Weights in 4 bits for the transformers runner: whether they can be made, and what they take.

They are bitsandbytes' NF4 (Dettmers et al., "QLoRA", 2023), through transformers' own integration:
it has kernels for CUDA, and works on a CPU and on MPS. It is an optional package. Only the matrices
inside the layers are quantized, each as soon as it is read; the embeddings and the output layer are
held as everything else is.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from typing import TYPE_CHECKING, Any

from shammah.errors import ShammahError
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.packages.safetensors_header import read_header

if TYPE_CHECKING:
    import torch

INT4 = "int4"
WEIGHT_BYTES = 0.5 + 4 / 64
"""Of a weight in 4 bits and its part of a scale: 32 bits for 64 weights."""

LIBRARY = "bitsandbytes"

_TABLES = re.compile(r"(?:^|[._])(?:embed|wte|wpe|word_embeddings|lm_head)")
_EXPERTS = re.compile(r"\.experts\.")
"""Names of matrices that stay as they are: embeddings and output layers; experts, because
transformers joins those of a layer into one tensor of three dimensions."""


def needed_bytes(checkpoint: Checkpoint, quantization: str, width: int) -> int:
    """What the weights take in memory.

    Args:
        checkpoint: the model.
        quantization: ``int4`` or empty.
        width: bytes of a number that is not quantized.
    """
    if not quantization:
        return width * checkpoint.parameters
    quantized, _ = _count(checkpoint)
    return int(WEIGHT_BYTES * quantized) + width * (checkpoint.parameters - quantized)


def check_quantizable(checkpoint: Checkpoint) -> None:
    """Refuse what cannot be done, before anything is read.

    Raises:
        ShammahError: ``quantization_unavailable``.
    """
    if importlib.util.find_spec(LIBRARY) is None:
        raise ShammahError(
            "quantization_unavailable",
            f"4-bit weights need {LIBRARY} with this engine, and it is not installed.",
            f"Run {sys.executable} -m pip install 'shammah[int4]', or set inference.quantization "
            "to auto.",
        )
    quantized, tables = _count(checkpoint)
    if 2 * quantized < checkpoint.parameters - tables:
        raise ShammahError(
            "quantization_unavailable",
            f"Most weights of this {checkpoint.architecture} cannot be quantized.",
            "Set inference.quantization to none.",
        )


def quantizer_config(dtype: torch.dtype) -> Any:
    """The configuration that transformers wants; ``dtype``: what is computed in."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def compute_alike(model: Any) -> None:
    """Have the layers of a quantized ``model`` compute on every processor what they do on most.

    With AVX512_BF16 the library would change the layout of 4-bit weights at their first use: that
    takes several times their size, which is not there where 4 bits are chosen; it fails for
    matrices whose sides are no multiples of 32 and 64; and the results have 16 bits.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _count(checkpoint: Checkpoint) -> tuple[int, int]:
    """How many weights would be quantized, and how many are embeddings and output layers."""
    quantized = tables = 0
    for tensor in (tensor for path in checkpoint.weights for tensor in read_header(path)):
        if _TABLES.search(tensor.name):
            tables += tensor.elements
        elif len(tensor.shape) == 2 and not _EXPERTS.search(tensor.name):
            quantized += tensor.elements
    return quantized, tables
