"""The mlx engine's row of the table of engines. Nothing is imported before it is used."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from shammah.models.hub_config import WIDTHS
from workers.inference.engine import Engine, EngineSpec, LoadSettings, Placement
from workers.inference.memory import free_main_memory, shortage
from workers.inference.packages.checkpoint import Checkpoint, digest_of_files
from workers.inference.packages.safetensors_header import read_header

LIBRARY = "mlx_lm"
QUANTIZATIONS = ("none", "int8", "int4")
FORMAT = 1
"""Of the files with quantised weights."""

GROUP = 64
"""Weights that share a scale and an offset, in the number format of everything else."""

WEIGHT_BYTES = {"int8": 1.0, "int4": 0.7}
"""Memory of a weight without those; in ``int4`` not all have 4 bits."""

_STORED = {"BF16": "bfloat16", "F16": "float16"}

_WHY = {
    "": "weights as published",
    "int8": "8-bit weights are nearly lossless, and a token takes half the time of 16-bit ones",
    "int4": "4-bit weights use the least memory and answer fastest, at some cost in quality",
}

ON_APPLE_SILICON = sys.platform == "darwin" and platform.machine() == "arm64"


def place(checkpoint: Checkpoint, settings: LoadSettings) -> Placement:
    """See `EngineSpec.place`. ``auto`` is 8 bits: reading the weights is most of a token's time,
    and a Mac shares its memory among all programs. Imports mlx."""
    quantization = {"auto": "int8", "none": ""}.get(settings.quantization, settings.quantization)
    dtype = _dtype(checkpoint) if settings.dtype == "auto" else settings.dtype
    width = float(WIDTHS[dtype])
    if quantization:
        width = WEIGHT_BYTES[quantization] + 2 * width / GROUP
    device = "mps" if ON_APPLE_SILICON else "cpu"
    placement = Placement(
        device,
        dtype,
        quantization,
        why=_WHY[quantization],
        needed=int(width * checkpoint.parameters),
        free=free_memory(),
    )
    if error := shortage(placement, checkpoint):
        raise error
    return placement


def free_memory() -> int:
    """Return the bytes that are free for weights, keys and values; a GPU may not use all memory."""
    import mlx.core as mx

    free = free_main_memory()
    if mx.metal.is_available():
        most = int(mx.device_info()["max_recommended_working_set_size"])
        free = min(free, max(0, most - mx.get_active_memory()))
    return free


def kept_path(home: Path, checkpoint: Checkpoint, quantization: str, dtype: str) -> Path:
    """Return where the quantised weights of this model are, or will be."""
    purpose = f"shammah mlx {FORMAT} {quantization} {dtype}"
    files = (checkpoint.directory / "config.json", *checkpoint.weights)
    return home / "quantized" / f"{digest_of_files(purpose, files)}.safetensors"


def _dtype(checkpoint: Checkpoint) -> str:
    """Return the 16-bit format that the weights are published in (bfloat16, if in another); on a
    CPU, which mlx has 16-bit kernels for that take ten times as long, float32."""
    if not ON_APPLE_SILICON:
        return "float32"
    tensors = (tensor for path in checkpoint.weights for tensor in read_header(path))
    return next((_STORED[one.dtype] for one in tensors if one.dtype in _STORED), "bfloat16")


def _make() -> Engine:
    from workers.inference.engines.mlx.runner import MlxRunner
    from workers.inference.scheduling.batched_engine import BatchedEngine

    return BatchedEngine(MlxRunner())


def _obstacle(checkpoint: Checkpoint | None) -> str:
    from workers.inference.engines.mlx import architecture

    return "" if checkpoint is None else architecture.find_obstacle(checkpoint)


def _stored(home: Path, checkpoint: Checkpoint) -> list[Path]:
    if checkpoint.format != "safetensors":
        return []
    return [
        kept_path(home, checkpoint, quantization, dtype)
        for quantization in WEIGHT_BYTES
        for dtype in WIDTHS
    ]


def make_spec(on_apple_silicon: bool) -> EngineSpec:
    """Return the row. Elsewhere mlx computes on the CPU, which others do faster."""
    return EngineSpec(
        name="mlx",
        why="the fastest on Apple silicon",
        make=_make,
        devices=("mps",) if on_apple_silicon else ("cpu",),
        any_dtype=False,
        quantizations=QUANTIZATIONS,
        automatic="int8",
        only_by_name=not on_apple_silicon,
        requires=("mlx", "mlx_lm"),
        install="pip install 'shammah[mlx]'",
        obstacle=_obstacle,
        place=place,
        stored=_stored,
    )


MLX = make_spec(ON_APPLE_SILICON)
