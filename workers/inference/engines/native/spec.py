"""The native engine's row of the table of engines. Nothing is imported before it is used."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shammah.models.footprint import NATIVE_WEIGHT_BYTES, published_bytes
from shammah.models.published_bits import AWQ, GPTQ
from shammah.storage.files import UNUSED_S
from workers.environment import prepare_libraries
from workers.inference.engine import Engine, EngineSpec, LoadSettings, Placement
from workers.inference.memory import free_main_memory, shortage
from workers.inference.packages.checkpoint import Checkpoint

QUANTIZATIONS = ("int8", "int4")
"""What the weights can be made into, the most exact first."""

_WHY = {
    "int8": "8-bit weights are nearly lossless and fast on this processor",
    "int4": "4-bit weights use the least memory and answer fastest, at some cost in quality",
}


def place(checkpoint: Checkpoint, settings: LoadSettings) -> Placement:
    """See `EngineSpec.place`; settings that the engine cannot follow are not offered to it."""
    free = free_main_memory()
    if checkpoint.format != "safetensors" and checkpoint.shape is not None:
        quantization, why = "int4", "the weights were published in 4 bits"
        needed = published_bytes(checkpoint.shape, checkpoint.parameters)
    else:
        quantization = "int8" if settings.quantization == "auto" else settings.quantization
        needed = int(NATIVE_WEIGHT_BYTES[quantization] * checkpoint.parameters)
        why = _WHY[quantization]
    placement = Placement("cpu", "float32", quantization, why=why, needed=needed, free=free)
    if error := shortage(placement, checkpoint):
        raise error
    return placement


def sweep_kernels(home: Path, now: float) -> Iterator[Path]:
    """Remove machine code of other versions that has not been used for a week."""
    from workers.inference.engines.native.kernels import kernel_directory, own_directory

    for directory in {home / "kernels", kernel_directory(home)}:
        own = own_directory(directory)
        if own.is_dir():
            os.utime(own, (now, now))
        for path in sorted(directory.glob("*")):
            with contextlib.suppress(OSError):  # removed by now
                if path != own and path.is_dir() and now - path.stat().st_mtime > UNUSED_S:
                    shutil.rmtree(path, ignore_errors=True)
                    yield path


def _make() -> Engine:
    prepare_libraries()
    from workers.inference.engines.native.runner import NativeRunner
    from workers.inference.scheduling.batched_engine import BatchedEngine

    return BatchedEngine(NativeRunner())


def _obstacle(checkpoint: Checkpoint | None) -> str:
    from workers.inference.engines.native import architecture, processor

    return processor.obstacle() if checkpoint is None else architecture.supports(checkpoint)


def _stored(home: Path, checkpoint: Checkpoint) -> list[Path]:
    from workers.inference.engines.native.quantized_file import cache_path

    forms = QUANTIZATIONS if checkpoint.format == "safetensors" else ("int4",)
    return [cache_path(home / "quantized", checkpoint, form) for form in forms]


def _report_kernels(home: Path) -> dict[str, Any]:
    """Where the machine code of these kernels is, and whether it is there."""
    from workers.inference.engines.native import kernels

    if carried := kernels.carried_library():
        return {"directory": str(carried[0].parent), "compiled": True}
    places = [home / "kernels", kernels.kernel_directory(home)]
    compiled = [
        place for place in places if find_spec("llvmlite") and kernels.kept_path(place).exists()
    ]
    return {"directory": str((compiled or places)[0]), "compiled": bool(compiled)}


NATIVE = EngineSpec(
    name="native",
    why="the fastest on a CPU",
    make=_make,
    devices=("cpu",),
    any_dtype=False,
    quantizations=QUANTIZATIONS,
    formats=("safetensors", AWQ, GPTQ),
    obstacle=_obstacle,
    place=place,
    stored=_stored,
    sweep=sweep_kernels,
    reports={"kernels": _report_kernels},
)
