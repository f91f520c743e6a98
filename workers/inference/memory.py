"""How much memory the conversations may take, and what it looks like when there is none."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from shammah.errors import ShammahError
from shammah.models.catalogue import GIB
from shammah.models.cgroups import memory_left
from shammah.models.footprint import BITS, HEADROOM_BYTES, KV_SHARE, LEAST_CONTEXT, kv_bytes
from shammah.models.hub_config import WIDTHS
from shammah.supervision.oom_record import CLOSE_OTHERS
from workers.model_classes import first_line

if TYPE_CHECKING:
    from workers.inference.engine import Placement
    from workers.inference.packages.checkpoint import Checkpoint
    from workers.inference.runner import Runner


PROC = Path("/proc")
"""Where Linux tells of its memory. psutil reads the same, and takes 10 ms to import."""

_OUT_OF_MEMORY = (
    # torch
    "can't allocate memory",
    "out of memory",
    # mlx
    "unable to allocate",
    "attempting to allocate",
    "insufficient memory",
)
"""In what libraries say."""


def free_main_memory() -> int:
    """Return the bytes of main memory that are left, within the machine and every limit.

    Files that this process has mapped are taken: the system would count weights and libraries
    as a cache that it can drop.
    """
    mapped = 0  # only Linux reports it
    try:
        told = re.search(r"MemAvailable: +(\d+) kB", (PROC / "meminfo").read_text())
        mapped = int((PROC / "self/statm").read_text().split()[2]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        told = None
    if told:
        available = int(told[1]) * 1024
    else:
        import psutil

        available = psutil.virtual_memory().available
    return max(0, min([available, *memory_left()]) - mapped)


def kv_budget(runner: Runner, wanted_gib: float) -> int:
    """Return how many tokens' keys and values all conversations together may hold.

    Args:
        runner: with a loaded model.
        wanted_gib: GiB for it; 0: a share of what is free.
    """
    room = min(wanted_gib * GIB, sys.maxsize) if wanted_gib else KV_SHARE * runner.free_bytes()
    return int(room) // runner.kv_bytes_per_token()


def conversation_bytes(checkpoint: Checkpoint) -> int:
    """Return the 16-bit keys and values of the shortest conversation that is worth having."""
    shape = checkpoint.shape
    if shape is None:
        return 0
    return kv_bytes(shape, min(LEAST_CONTEXT, shape.context_length), WIDTHS["float16"])


def shortage(placement: Placement, checkpoint: Checkpoint) -> ShammahError | None:
    """Return why memory is too little for a model, with both numbers; ``None``: it is enough."""
    extra = max(HEADROOM_BYTES, int(conversation_bytes(checkpoint) / KV_SHARE))
    if placement.needed + extra <= placement.free:
        return None
    form = BITS.get(placement.quantization, placement.dtype)
    return ShammahError(
        "out_of_memory",
        f"The model needs {(placement.needed + extra) / GIB:.1f} GiB in {form} on "
        f"{placement.device}, but only {placement.free / GIB:.1f} GiB of memory is free.",
        CLOSE_OTHERS,
    )


def check_context(capacity: int, wanted: int, runner: Runner, wanted_gib: float = 0.0) -> None:
    """Refuse a context that is too small to be of use. ``wanted_gib``: see `kv_budget`.

    Raises:
        ShammahError: ``out_of_memory``, with the numbers.
    """
    if capacity >= min(wanted, LEAST_CONTEXT):
        return
    needed = LEAST_CONTEXT * runner.kv_bytes_per_token() / GIB
    if wanted_gib:
        raise ShammahError(
            "out_of_memory",
            f"inference.kv_memory is {wanted_gib:g} GiB, but a conversation of "
            f"{LEAST_CONTEXT:,} tokens needs {needed:.2f}.",
            "Raise it, or set it to 0.",
        )
    raise ShammahError(
        "out_of_memory",
        f"With this model loaded, {runner.free_bytes() / GIB:.1f} GiB of memory is free, but a "
        f"conversation of {LEAST_CONTEXT:,} tokens needs {needed / KV_SHARE:.1f}.",
        CLOSE_OTHERS,
    )


def gpu_failed(error: Exception) -> ShammahError:
    """Return the failure of a driver or a GPU, in the words of the library that reports it."""
    return ShammahError(
        "device_unavailable",
        f"Couldn't use the GPU ({first_line(error)}).",
        "Set inference.device to cpu, or fix the driver: `nvidia-smi` shows its version.",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: each device reports it in its own way."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)
