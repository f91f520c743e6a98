"""The transformers engine's row of the table of engines. Nothing is imported before it is used."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from workers.inference.engine import Engine, EngineSpec, LoadSettings, Placement
from workers.inference.packages.checkpoint import Checkpoint


def place(checkpoint: Checkpoint, settings: LoadSettings) -> Placement:
    """See `EngineSpec.place`. Imports torch."""
    from workers.inference.engines.transformers import placement

    device = placement.choose_device(settings.device, checkpoint.parameters, settings.quantization)
    free = placement.free_memory(device)
    return placement.choose_form(settings, device, checkpoint, free)


def _make() -> Engine:
    from workers.inference.engines.transformers.runner import TransformersRunner
    from workers.inference.scheduling.batched_engine import BatchedEngine

    return BatchedEngine(TransformersRunner())


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


TRANSFORMERS = EngineSpec(
    name="transformers",
    why="it computes every model",
    make=_make,
    place=place,
    quantizations=("none", "int4"),
    requires=("torch", "transformers"),
    install="pip install 'shammah[transformers]'",
    reports={"accelerator": _report_accelerator},
)
