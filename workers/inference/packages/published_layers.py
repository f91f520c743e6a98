"""The layers of a checkpoint that was published in 4 bits (`shammah.models.published_bits`).

A linear layer X of ``inputs`` inputs and ``channels`` channels is stored as int32 words of eight
numbers each, the first of them in the lowest bits:

    X.qweight    AWQ: (inputs, channels / 8), along the channels, in the order 0 2 4 6 1 3 5 7
                 GPTQ: (inputs / 8, channels), along the inputs
    X.qzeros     (groups, channels / 8), along the channels; AWQ: in the same order. GPTQ's first
                 format subtracts 0x11111111 from each word, a zero point less one
    X.scales     (groups, channels), as float16
    X.g_idx      GPTQ: (inputs), the group of every input; not always there
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from shammah.bus.record import record
from shammah.models.published_bits import AWQ, PublishedBits
from workers.inference.packages.safetensors_header import Tensor

WORDS, ZEROS, SCALES, GROUPS = SUFFIXES = ".qweight", ".qzeros", ".scales", ".g_idx"

IN_A_WORD = 8
_FLOATS = ("F16", "BF16", "F32")


@record
class PublishedLayer:
    """A layer as it is stored; ``name`` is the X above."""

    name: str
    channels: int
    inputs: int


def find_layers(tensors: Iterable[Tensor], bits: PublishedBits) -> dict[str, PublishedLayer]:
    """The layers in 4 bits, by name.

    Raises:
        ValueError: one is not whole, or there is none; the error completes "The weights ...".
    """
    stored = {tensor.name: tensor for tensor in tensors}
    found = {}
    for words in stored.values():
        if words.name.endswith(WORDS):
            layer = _layer(words, bits)
            _check(layer, stored, math.ceil(layer.inputs / bits.group))
            found[layer.name] = layer
    if not found:
        raise ValueError("are not quantised, though config.json says so")
    return found


def _layer(words: Tensor, bits: PublishedBits) -> PublishedLayer:
    if words.dtype != "I32" or len(words.shape) != 2:
        raise ValueError(f"hold {words.name} as {words.dtype} {list(words.shape)}")
    name, (inputs, channels) = words.name.removesuffix(WORDS), words.shape
    if bits.format == AWQ:
        return PublishedLayer(name, channels * IN_A_WORD, inputs)
    return PublishedLayer(name, channels, inputs * IN_A_WORD)


def _check(layer: PublishedLayer, stored: Mapping[str, Tensor], groups: int) -> None:
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {
        ZEROS: ("I32", (groups, layer.channels // IN_A_WORD)),
        SCALES: ("F16", (groups, layer.channels)),
    }
    if layer.name + GROUPS in stored:
        wanted[GROUPS] = "I32", (layer.inputs,)
    for suffix, (dtype, shape) in wanted.items():
        tensor = stored.get(layer.name + suffix)
        if tensor is None:
            raise ValueError(f"hold {layer.name}{WORDS}, but lack {layer.name}{suffix}")
        kinds = _FLOATS if dtype in _FLOATS else (dtype,)
        if tensor.shape != shape or tensor.dtype not in kinds:
            raise ValueError(
                f"hold {tensor.name} as {tensor.dtype} {list(tensor.shape)} instead of {dtype} "
                f"{list(shape)}"
            )


def count_parameters(tensors: Iterable[Tensor], layers: Mapping[str, PublishedLayer]) -> int:
    """How many weights a checkpoint holds, each of its layers' counted as one."""
    packed = {layer + suffix for layer in layers for suffix in SUFFIXES}
    plain = sum(tensor.elements for tensor in tensors if tensor.name not in packed)
    return plain + sum(layer.channels * layer.inputs for layer in layers.values())
