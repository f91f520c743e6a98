"""A training written down, so that it goes on after any end: one file, replaced in one step."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from shammah.errors import ShammahError
from shammah.storage.files import new_file

FORMAT = "4"
_KIND = "state"


@dataclass
class Curve:
    """What a training has shown so far. ``losses`` has each step's weighted mean loss, ``unknown``
    the number of its examples that would be answered otherwise (see `loss.count_unknown`), ``kept``
    its divergence from the base model on general questions (nats a token), ``held_out`` (step,
    loss) at the start and after each epoch. ``best_loss`` is the least of the latter, with what the
    divergence counts in addition, and was found at ``best_step``. ``seconds`` of work, over all
    resumed runs."""

    losses: list[float] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = 0
    best_loss: float = float("inf")
    tokens: int = 0
    seconds: float = field(default=0.0, compare=False)


@dataclass
class Snapshot:
    """``tensors`` are what is learnt (``weights.``), Adam's moments (``first.``, ``second.``)
    and the best weights so far (``best.``)."""

    run: str
    step: int
    curve: Curve
    tensors: dict[str, torch.Tensor]


def write_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Write it whole or leave the one before.

    Raises:
        ShammahError: ``checkpoint_unwritable``.
    """
    document = {"run": snapshot.run, "step": snapshot.step, "curve": asdict(snapshot.curve)}
    try:
        tensors = {one: tensor.contiguous() for one, tensor in snapshot.tensors.items()}
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with new_file(path) as draft:
            save_file(tensors, draft, {"format": FORMAT, _KIND: json.dumps(document)})
    except (OSError, SafetensorError) as error:
        raise ShammahError(
            "checkpoint_unwritable",
            f"The training cannot be saved ({error}).",
            "Free some space on the disk of SHAMMAH_HOME, and train again.",
        ) from error


def read_snapshot(path: Path, run: str) -> Snapshot | None:
    """The snapshot of the training ``run``; ``None``: there is none of it that is whole."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                return None
            document: dict[str, Any] = json.loads(metadata[_KIND])
            if document["run"] != run:
                return None
            told = document["curve"]
            told["held_out"] = [(int(step), float(loss)) for step, loss in told["held_out"]]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Snapshot(run, int(document["step"]), Curve(**told), tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
