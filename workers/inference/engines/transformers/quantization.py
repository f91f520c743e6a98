"""Weights in 8 and 4 bits for the transformers runner: what they take, and where they are kept.

- **8 bits** are computed by torch alone (`int8_linear`), so that they are there on every device.
- **4 bits** are bitsandbytes' NF4 (Dettmers et al., "QLoRA", 2023), through transformers' own
  integration: it has kernels for CUDA, and works on a CPU and on MPS. It is an optional package.

Either way only the matrices inside the layers are quantized; the embeddings and the output layer
are held as everything else is. A model is quantized once, tensor by tensor as it is read, and kept
in ``<home>/quantized/<digest>-<form>/`` as transformers saves it, which appears whole or not at
all. Later loads read nothing of the original weights.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shammah.errors import ShammahError
from shammah.storage.disk import describe_remedy
from shammah.storage.files import new_directory, sync_file
from workers.inference.packages.checkpoint import Checkpoint, digest_of_files
from workers.inference.packages.safetensors_header import read_header

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

INT8, INT4 = "int8", "int4"
WEIGHT_BYTES = {INT8: 1 + 2 / 32, INT4: 0.5 + 4 / 64}
"""Of a quantized weight and its part of a scale: 16 bits for 32 weights, 32 bits for 64."""

LIBRARY = "bitsandbytes"
FORMAT = 1

_TABLES = re.compile(r"(?:^|[._])(?:embed|wte|wpe|word_embeddings|lm_head)")
_EXPERTS = re.compile(r"\.experts\.")
"""Names of matrices that stay as they are: embeddings and output layers; experts, because
transformers joins those of a layer into one tensor of three dimensions."""


def needed_bytes(checkpoint: Checkpoint, quantization: str, width: int) -> int:
    """What the weights take in memory.

    Args:
        checkpoint: the model.
        quantization: ``int8``, ``int4`` or empty.
        width: bytes of a number that is not quantized.
    """
    if not quantization:
        return width * checkpoint.parameters
    quantized, _ = _count(checkpoint)
    rest = checkpoint.parameters - quantized
    return int(WEIGHT_BYTES[quantization] * quantized) + width * rest


def is_available(quantization: str) -> bool:
    """Whether what computes it is installed. Imports nothing."""
    return quantization != INT4 or importlib.util.find_spec(LIBRARY) is not None


def check_quantizable(checkpoint: Checkpoint, quantization: str) -> None:
    """Refuse what cannot be done, before anything is read.

    Raises:
        ShammahError: ``quantization_unavailable``.
    """
    if not is_available(quantization):
        raise ShammahError(
            "quantization_unavailable",
            f"4-bit weights need {LIBRARY}, which is not installed.",
            f"{sys.executable} -m pip install {LIBRARY}, or set inference.quantization to int8.",
        )
    quantized, tables = _count(checkpoint)
    if 2 * quantized < checkpoint.parameters - tables:
        raise ShammahError(
            "quantization_unavailable",
            f"Most weights of this {checkpoint.architecture} cannot be quantized.",
            "Set inference.quantization to none.",
        )


def quantizer_config(quantization: str, dtype: torch.dtype) -> Any:
    """The configuration that transformers wants. Imports it, and the library."""
    from workers.inference.engines.transformers import (
        int8_method,  # also makes it known to transformers
    )

    if quantization == INT8:
        return int8_method.Int8Config()
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


# --- where they are kept ------------------------------------------------------------------


def kept_directory(home: Path, checkpoint: Checkpoint, quantization: str, dtype: str) -> Path:
    """Where the quantized model is, or will be.

    The digest is of the configuration and the weight files (path, size, time of change), and of
    what quantizes them.
    """
    version = importlib.metadata.version(LIBRARY) if quantization == INT4 else ""
    files = (checkpoint.directory / "config.json", *checkpoint.weights)
    digest = digest_of_files(f"{FORMAT} {quantization} {dtype}{version}", files)
    return home / "quantized" / f"{digest}-{quantization}"


def keep(model: Any, directory: Path) -> str:
    """Save a quantized ``model``; it appears whole, or not at all.

    What cannot be saved is only slower the next time, so that is no error, but a sentence for
    people; empty: it was saved.
    """
    try:
        with new_directory(directory) as draft:
            model.save_pretrained(draft)
            for path in draft.iterdir():
                sync_file(path)
            if directory.exists():  # damaged
                shutil.rmtree(directory)
        return ""
    except Exception as error:
        # safetensors has errors of its own for a full disk.
        log.warning("cannot write the quantized weights to %s: %s", directory, error)
        return (
            f"Couldn't write the quantized weights to {directory.parent}, so they are made again "
            f"at each start. {describe_remedy(directory.parent)}"
        )


def _count(checkpoint: Checkpoint) -> tuple[int, int]:
    """How many weights would be quantized, and how many are embeddings and output layers."""
    quantized = tables = 0
    for tensor in (tensor for path in checkpoint.weights for tensor in read_header(path)):
        if _TABLES.search(tensor.name):
            tables += tensor.elements
        elif len(tensor.shape) == 2 and not _EXPERTS.search(tensor.name):
            quantized += tensor.elements
    return quantized, tables
