"""The vllm engine's row of the table of engines. Nothing is imported before it is used."""

from __future__ import annotations

from shammah.errors import ShammahError
from shammah.models.hub_config import WIDTHS
from workers.inference.engine import Engine, EngineSpec, LoadSettings, Placement
from workers.inference.memory import shortage
from workers.inference.packages.checkpoint import Checkpoint


def place(checkpoint: Checkpoint, settings: LoadSettings) -> Placement:
    """See `EngineSpec.place`. Imports torch."""
    import torch

    if not torch.cuda.is_available():
        raise ShammahError(
            "device_unavailable",
            f"torch {torch.__version__} found no usable cuda device.",
            "Set inference.engine to auto, or fix the driver: `nvidia-smi` shows its version.",
        )
    four_bits = checkpoint.format in ("awq", "gptq")
    half = "float16" if four_bits or not torch.cuda.is_bf16_supported() else "bfloat16"
    dtype = half if settings.dtype == "auto" else settings.dtype
    placement = Placement(
        "cuda",
        dtype,
        "int4" if four_bits else "",
        why="as published" if four_bits else "the fastest format on cuda",
        needed=checkpoint.weight_bytes if four_bits else WIDTHS[dtype] * checkpoint.parameters,
        free=int(torch.cuda.mem_get_info()[0]),
    )
    if error := shortage(placement, checkpoint):
        raise error
    return placement


def _make() -> Engine:
    from workers.inference.engines.vllm.engine import VllmEngine

    return VllmEngine()


VLLM = EngineSpec(
    name="vllm",
    why="many conversations at once on a GPU",
    make=_make,
    place=place,
    formats=("safetensors", "awq", "gptq"),
    devices=("cuda",),
    refuses_late=True,
    requires=("vllm",),
    install="pip install vllm",
)
