"""What this machine computes well: measured once, in under a second, and kept.

No table of processors could say it. One without bfloat16 arithmetic computes bfloat16 five
times slower than float32 although it reads half the bytes; another one the other way round.
How much memory is free is looked at for every load, and never kept.

The bandwidth needs numpy alone, the products need torch.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shammah.storage.files import replace_file

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

FILE = "machine-speed.json"
"""In the home."""

FORMAT = 2
DTYPES = ("float32", "bfloat16", "float16")
INT8 = "int8"

ROWS, COLUMNS, BLOCK = 2048, 2048, 64
"""A matrix of a 1.5B model, and a chunk of a prompt."""

LIMIT_S = 0.06
"""For each product: several runs of it, of which the fastest counts."""

READ_BYTES = 256 * 1024**2
"""More than the caches of most processors hold."""

PROMPT, ANSWER = 256, 256
"""Tokens of the question and answer for which the time is compared."""

WORTH = 1.25
"""How much faster 8 bits must be to be preferred to numbers that are not rounded."""

Product = Callable[["torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True, slots=True)
class MachineSpeed:
    """Speeds of one machine with one version of the libraries.

    Attributes:
        machine: says which; another one means that it has to be measured again.
        row: by number format, weights per second (1e9) in products with one row: decode.
            ``int8`` is the transformers runner's.
        block: by number format, weight uses per second (1e9) in products with a chunk:
            prefill.
        bandwidth: bytes of memory per second (1e9) that all cores read together.
    """

    machine: str
    row: Mapping[str, float]
    block: Mapping[str, float]
    bandwidth: float = 0.0

    def seconds(self, form: str, parameters: int) -> float:
        """Estimated time of a question and its answer with a model of so many weights."""
        decode = ANSWER * parameters / (self.row[form] * 1e9)
        prefill = PROMPT * parameters / (self.block[form] * 1e9)
        return decode + prefill

    def fastest(self, parameters: int, fits: Callable[[str], bool]) -> str | None:
        """The number format with which that is shortest, of those that fit into memory."""
        fitting = [form for form in self.row if fits(form)]
        return min(
            fitting,
            key=lambda form: self.seconds(form, parameters) * (WORTH if form == INT8 else 1),
            default=None,
        )


def machine_speed(
    path: Path, torch_version: str, measure: Callable[[], MachineSpeed]
) -> MachineSpeed:
    """Return what was measured on this machine, or measure it now.

    Args:
        path: where it is kept.
        torch_version: with which it must have been measured.
        measure: measures it.
    """
    kept = _read(path)
    if kept is not None and kept.machine == machine_name(torch_version):
        return kept
    speed = measure()
    try:
        _write(path, speed)
    except OSError as error:  # it takes a second to measure again
        log.warning("the measured speed cannot be kept: %s", error)
    return speed


def speed_of_machine(home: Path) -> MachineSpeed:
    """Return how fast this machine is; measure it, if that has not been done. Imports torch."""
    import torch

    return machine_speed(home / FILE, torch.__version__, measure_speed)


def _write(path: Path, speed: MachineSpeed) -> None:
    document = json.dumps({"format": FORMAT, **asdict(speed)}, indent=2)
    replace_file(path, document.encode(), sync=False)


def machine_name(torch_version: str) -> str:
    """The processor, its cores and what computes on it."""
    return f"{processor_name()}, {os.cpu_count()} cores, torch {torch_version}"


def processor_name() -> str:
    """Return it as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def measure_speed() -> MachineSpeed:
    """Measure this machine; half a second. Imports torch."""
    import torch

    row, block = {}, {}
    for name, product in _products():
        with torch.inference_mode():
            dtype = torch.float32 if name == INT8 else getattr(torch, name)
            row[name] = _rate(product, torch.ones(1, COLUMNS, dtype=dtype))
            block[name] = BLOCK * _rate(product, torch.ones(BLOCK, COLUMNS, dtype=dtype))
    return MachineSpeed(machine_name(torch.__version__), row, block, measure_bandwidth())


def measure_bandwidth(size: int = READ_BYTES) -> float:
    """Bytes of memory per second (1e9) that all cores read together. Imports numpy.

    Args:
        size: bytes to read; half a second of them at 1 GB/s at most.
    """
    import numpy as np

    threads = os.cpu_count() or 1
    parts = np.array_split(np.ones(size // 4, np.int32), threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(4):
            began = time.perf_counter()
            list(pool.map(np.maximum.reduce, parts))
            best = min(best, time.perf_counter() - began)
    return size / best / 1e9


def _products() -> list[tuple[str, Product]]:
    """What multiplies rows by a matrix of ROWS x COLUMNS, by number format."""
    import torch

    from workers.inference.engines.transformers.int8_linear import Int8Linear, frozen, quantize

    def plain(weights: torch.Tensor) -> Product:
        return lambda rows: torch.nn.functional.linear(rows, weights)

    whole = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
    rounded = Int8Linear(COLUMNS, ROWS, bias=False)
    rounded.weight, rounded.scale = map(frozen, quantize(whole))
    products = [(name, plain(whole.to(getattr(torch, name)))) for name in DTYPES]
    return [*products, (INT8, rounded)]


def _rate(product: Product, rows: torch.Tensor) -> float:
    """Weights per second (1e9) of a product with ``rows``."""
    best, deadline = float("inf"), time.perf_counter() + LIMIT_S
    while True:
        began = time.perf_counter()
        product(rows)
        ended = time.perf_counter()
        best = min(best, ended - began)
        if ended > deadline:
            return ROWS * COLUMNS / best / 1e9


def _read(path: Path) -> MachineSpeed | None:
    try:
        document = json.loads(path.read_text())
        if document["format"] != FORMAT:
            return None
        row = {str(name): float(value) for name, value in document["row"].items()}
        block = {str(name): float(value) for name, value in document["block"].items()}
        bandwidth = float(document["bandwidth"])
        speed = MachineSpeed(str(document["machine"]), row, block, bandwidth)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    every = [*row.values(), *block.values()]
    return speed if row.keys() == block.keys() and all(value > 0 for value in every) else None
