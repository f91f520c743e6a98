"""The llamacpp engine's row of the table of engines. Nothing is imported before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shammah.errors import ShammahError
from workers.inference.engine import Engine, EngineSpec, LoadSettings, Placement
from workers.inference.memory import free_main_memory, shortage
from workers.inference.packages.checkpoint import Checkpoint

if TYPE_CHECKING:
    from workers.text.model_text import ModelText

INSTALL = "pip install 'shammah[llamacpp]'"


def place(checkpoint: Checkpoint, settings: LoadSettings) -> Placement:
    """See `EngineSpec.place`."""
    device = "cpu" if settings.device == "auto" else settings.device
    placement = Placement(
        device,
        "the file's own number format",
        "",
        why="the weights stay as they are in the file",
        needed=checkpoint.weight_bytes,
        free=free_memory(device),
    )
    if error := shortage(placement, checkpoint):
        raise error
    return placement


def free_memory(device: str) -> int:
    """Bytes that are free for weights, and for keys and values.

    Raises:
        ShammahError: ``device_unavailable`` or ``engine_unavailable``.
    """
    if device == "cpu":
        return free_main_memory()
    from workers.inference.engines.llamacpp.library import open_library

    free = open_library().free_gpu_memory()
    if free is None:
        raise ShammahError(
            "device_unavailable",
            f"The installed llama.cpp computes on the processor alone, and not on {device}.",
            "Set inference.device to cpu, or install a wheel of xllamacpp for this GPU.",
        )
    return free


def _make() -> Engine:
    from workers.inference.engines.llamacpp.runner import LlamaCppRunner
    from workers.inference.scheduling.batched_engine import BatchedEngine

    return BatchedEngine(LlamaCppRunner())


def _read_text(checkpoint: Checkpoint) -> ModelText:
    from workers.inference.engines.llamacpp.tokenizer import read_text

    return read_text(checkpoint)


LLAMACPP = EngineSpec(
    name="llamacpp",
    why="it computes the weights of a GGUF file as they are",
    make=_make,
    formats=("gguf",),
    any_dtype=False,
    requires=("xllamacpp",),
    install=INSTALL,
    place=place,
    read_text=_read_text,
)
