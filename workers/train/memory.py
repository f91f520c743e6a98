"""How much memory a training takes, before anything is loaded. Pure apart from `free_memory`."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from shammah.errors import ShammahError
from shammah.models.catalogue import GIB, ModelShape
from shammah.models.cgroups import memory_left

LIBRARIES_BYTES = GIB // 2
"""torch, transformers and peft themselves, and what the allocator keeps."""

ADAPTER_COPIES = 5
"""Of each learnt number: itself, its gradient, Adam's two moments, the best so far."""

_LAYER_HIDDEN = 12
"""Numbers as wide as the model that one layer keeps for the backward pass, for each token: two
normalised inputs, queries, the attention's output, residuals and what norms keep."""
_LAYER_MLP = 4
"""Numbers as wide as the feed-forward block: gate, its activation, up and their product."""
_LOGITS = 3
"""The logits, once more in 32 bits, and the gradient."""

_AIMED_COPIES = 2
"""Of a layer's inputs, in 32 bits: all, and the part that is looked at."""
_MOMENTS = 3
"""Square matrices of 64 bits: second moments, their root, and what the solver works in."""
MOST_AIMED = 32_768
"""Tokens: 203 general answers of some 60, and 127 examples of 96 at most, all padded alike."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes. ``activations`` are those of one micro-batch, ``frugal`` the same when each layer
    is computed twice instead of kept (gradient checkpointing); ``aiming`` is what is computed once
    before the first step (`workers.train.aiming`)."""

    weights: int
    adapter: int
    activations: int
    frugal: int
    aiming: int = 0

    @property
    def total(self) -> int:
        most = max(self.activations, self.aiming)
        return self.weights + self.adapter + most + LIBRARIES_BYTES

    @property
    def least(self) -> int:
        return self.weights + self.adapter + max(self.frugal, self.aiming) + LIBRARIES_BYTES


def estimate(
    shape: ModelShape,
    parameters: int,
    adapter: int,
    tokens: int,
    width: int,
    aimed: int = 0,
) -> Needs:
    """What a training of micro-batches of ``tokens`` needs.

    Args:
        shape: of the base model.
        parameters: numbers in the base model.
        adapter: numbers that are learnt.
        tokens: of one micro-batch.
        width: bytes of a number of the base model, and of an activation.
        aimed: tokens that are looked at for aiming.
    """
    a_token = _LAYER_HIDDEN * shape.hidden + _LAYER_MLP * shape.intermediate
    layer = tokens * (a_token + shape.heads * tokens) * width
    logits = _LOGITS * tokens * shape.vocabulary * 4
    kept = shape.layers * tokens * shape.hidden * width
    wide = max(shape.hidden, shape.intermediate)
    aiming = aimed * (a_token * width + _AIMED_COPIES * wide * 4) + _MOMENTS * wide * wide * 8
    return Needs(
        parameters * width,
        ADAPTER_COPIES * adapter * 4,
        shape.layers * layer + logits,
        kept + layer + logits,
        aiming if aimed else 0,
    )


def choose_checkpointing(needs: Needs, free: int) -> bool:
    """Whether layers must be computed twice, since memory is short.

    Raises:
        ShammahError: ``out_of_memory``, with both numbers: not even that is enough.
    """
    if needs.total <= free:
        return False
    if needs.least <= free:
        return True
    raise ShammahError(
        "out_of_memory",
        f"The training needs {needs.least / GIB:.1f} GiB ({needs.weights / GIB:.1f} of them for "
        f"the frozen weights), and {free / GIB:.1f} GiB of memory are free.",
        "Close other programs (`shammah stop inference` frees the local model's memory), or "
        "train a smaller model with --model.",
    )


def free_memory() -> int:
    """Bytes that may be taken yet: of the machine, and of every limit."""
    return min([psutil.virtual_memory().available, *memory_left()])
