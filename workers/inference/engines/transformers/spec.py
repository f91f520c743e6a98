"""The transformers engine's row of the table of engines. Nothing is imported before it is used."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shammah.models.hub_config import WIDTHS
from shammah.settings.load import home_directory
from workers.inference.engine import Engine, EngineSpec, LoadSettings, Placement
from workers.inference.packages.checkpoint import Checkpoint


def place(checkpoint: Checkpoint, settings: LoadSettings) -> Placement:
    """See `EngineSpec.place`. Imports torch."""
    from workers.inference.engines.transformers import placement, probe

    device = placement.choose_device(
        settings.device, checkpoint.parameters, quantized=settings.quantization != "none"
    )
    home = settings.home or home_directory(os.environ)
    return placement.choose_form(
        settings,
        device,
        checkpoint,
        free=placement.free_memory(device),
        speed=lambda: probe.speed_of_machine(home),
    )


def _make() -> Engine:
    from workers.inference.engines.transformers.runner import TransformersRunner
    from workers.inference.scheduling.batched_engine import BatchedEngine

    return BatchedEngine(TransformersRunner())


def _stored(home: Path, checkpoint: Checkpoint) -> list[Path]:
    from workers.inference.engines.transformers import quantization

    return [
        quantization.kept_directory(home, checkpoint, form, dtype)
        for form in quantization.WEIGHT_BYTES
        if quantization.is_available(form)
        for dtype in WIDTHS
    ]


def _report_accelerator(home: Path) -> dict[str, Any]:
    """Return what torch can compute on, apart from the processor."""
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return {"device": "cuda", "name": name, "free": free, "total": total}
    if torch.backends.mps.is_available():
        return {"device": "mps", "name": platform.processor(), "free": 0, "total": 0}
    return {"device": "", "name": "", "free": 0, "total": 0}


def _report_speed(home: Path) -> dict[str, Any]:
    from workers.inference.engines.transformers import probe

    return asdict(probe.speed_of_machine(home))


TRANSFORMERS = EngineSpec(
    name="transformers",
    why="it computes every model",
    make=_make,
    place=place,
    stored=_stored,
    reports={"accelerator": _report_accelerator, "speed": _report_speed},
)
