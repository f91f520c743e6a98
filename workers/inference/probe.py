"""What this machine computes well: measured once, in under a second, and kept.

No table of processors could say it. One without bfloat16 arithmetic computes bfloat16 five
times slower than float32 although it reads half the bytes; another one the other way round.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FORMAT = 1
DTYPES = ("float32", "bfloat16", "float16")
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}

ROWS, COLUMNS, BLOCK = 2048, 2048, 64
"""A matrix of a 1.5B model, and a chunk of a prompt."""

LIMIT_S = 0.08
"""For each product: several runs of it, of which the fastest counts."""

PROMPT, ANSWER = 256, 256
"""Tokens of the question and answer for which the time is compared."""


@dataclass(frozen=True, slots=True)
class MachineSpeed:
    """Speeds of one machine with one version of the libraries.

    Attributes:
        machine: says which; another one means that it has to be measured again.
        row: by number format, weights per second (1e9) in products with one row: decode.
        block: by number format, weight uses per second (1e9) in products with a chunk:
            prefill.
    """

    machine: str
    row: Mapping[str, float]
    block: Mapping[str, float]

    def seconds(self, dtype: str, parameters: int) -> float:
        """Estimated time of a question and its answer with a model of so many weights."""
        decode = ANSWER * parameters / (self.row[dtype] * 1e9)
        prefill = PROMPT * parameters / (self.block[dtype] * 1e9)
        return decode + prefill

    def fastest(self, parameters: int, fits: Callable[[str], bool]) -> str | None:
        """The number format with which that is shortest, of those that fit into memory."""
        fitting = [dtype for dtype in self.row if fits(dtype)]
        return min(fitting, key=lambda dtype: self.seconds(dtype, parameters), default=None)


def machine_speed(
    path: Path, torch_version: str, measure: Callable[[], MachineSpeed]
) -> MachineSpeed:
    """What was measured on this machine, or is now.

    Args:
        path: where it is kept.
        torch_version: with which it must have been measured.
        measure: measures it.
    """
    kept = _read(path)
    if kept is not None and kept.machine == machine_name(torch_version):
        return kept
    speed = measure()
    draft = path.with_suffix(".new")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump({"format": FORMAT, **asdict(speed)}, file, indent=2)
    os.replace(draft, path)
    return speed


def machine_name(torch_version: str) -> str:
    """The processor, its cores and what computes on it."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {os.cpu_count()} cores, torch {torch_version}"


def measure_speed() -> MachineSpeed:
    """Measure this machine; half a second. Imports torch."""
    import torch

    row, block = {}, {}
    generator = torch.Generator().manual_seed(1)
    whole = torch.randn(ROWS, COLUMNS, generator=generator)
    for name in DTYPES:
        weights = whole.to(getattr(torch, name))
        row[name] = _rate(weights, 1)
        block[name] = BLOCK * _rate(weights, BLOCK)
    return MachineSpeed(machine_name(torch.__version__), row, block)


def _rate(weights: torch.Tensor, rows: int) -> float:
    """Weights per second (1e9) of a product with so many rows."""
    import torch

    inputs = torch.ones(rows, weights.shape[1], dtype=weights.dtype)
    best, deadline = float("inf"), time.perf_counter() + LIMIT_S
    with torch.inference_mode():
        while True:
            began = time.perf_counter()
            torch.nn.functional.linear(inputs, weights)
            ended = time.perf_counter()
            best = min(best, ended - began)
            if ended > deadline:
                return weights.numel() / best / 1e9


def _read(path: Path) -> MachineSpeed | None:
    try:
        document = json.loads(path.read_text())
        if document["format"] != FORMAT:
            return None
        row = {str(name): float(value) for name, value in document["row"].items()}
        block = {str(name): float(value) for name, value in document["block"].items()}
        speed = MachineSpeed(str(document["machine"]), row, block)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    every = [*row.values(), *block.values()]
    return speed if row.keys() == block.keys() and all(value > 0 for value in every) else None
