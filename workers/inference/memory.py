"""How much memory the conversations may take, and what it looks like when there is none."""

from __future__ import annotations

from shammah.errors import ShammahError
from shammah.models import GIB
from workers.inference.runner import Runner

HEADROOM_BYTES = GIB // 2
"""For the cache of keys and values, activations and the libraries, beside the weights."""

KV_SHARE = 0.5
"""Of the memory that is free after the load. The rest is for activations, and for others."""

LEAST_CONTEXT = 2048
"""Tokens. With less, a model can hardly hold a conversation."""


def kv_budget(runner: Runner, wanted_gib: float) -> int:
    """Tokens whose keys and values may be held, by all conversations together.

    Args:
        runner: with a loaded model.
        wanted_gib: GiB for it; 0: a share of what is free.
    """
    room = wanted_gib * GIB if wanted_gib else KV_SHARE * runner.free_bytes()
    return int(room) // runner.kv_bytes_per_token()


def check_weights(needed: int, free: int, form: str) -> None:
    """Refuse a model whose weights do not fit, before a byte of them is read.

    Args:
        needed: bytes of the weights.
        free: bytes that they may take.
        form: of the weights, for people.

    Raises:
        ShammahError: ``out_of_memory``, with both numbers.
    """
    needed += HEADROOM_BYTES
    if needed > free:
        raise ShammahError(
            "out_of_memory",
            f"The model needs {needed / GIB:.1f} GiB in {form}, and {free / GIB:.1f} GiB of "
            "memory are free.",
            "Close other programs, or name a smaller model with --model.",
        )


def check_context(capacity: int, wanted: int, runner: Runner) -> None:
    """Refuse a context that is too small to be of use.

    Raises:
        ShammahError: ``out_of_memory``, with the numbers.
    """
    if capacity >= min(wanted, LEAST_CONTEXT):
        return
    needed = LEAST_CONTEXT * runner.kv_bytes_per_token() / GIB / KV_SHARE
    raise ShammahError(
        "out_of_memory",
        f"With this model loaded, {runner.free_bytes() / GIB:.1f} GiB of memory are free; a "
        f"conversation of {LEAST_CONTEXT:,} tokens needs {needed:.1f}.",
        "Close other programs, or name a smaller model with --model.",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was too little: each device says it in another way."""
    if isinstance(error, MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "out of memory" in text
    )
