"""Adapters for tests: PEFT directories in a home, written without peft or torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shammah.learning.adapters import ACCEPTED, CONFIG, WEIGHTS, AdapterEntry, AdapterStore


def write_adapter(
    home: Path,
    name: str,
    config: dict[str, Any],
    tensors: dict[str, NDArray[np.float32]],
    *,
    kind: str = "F32",
    base_model: str = "starter",
    base_revision: str = "",
) -> AdapterEntry:
    """An adapter of the store at ``home``, judged good; ``kind`` is how its numbers are stored."""

    def fill(directory: Path) -> None:
        (directory / CONFIG).write_text(json.dumps(config))
        save_tensors(directory / WEIGHTS, tensors, kind)

    facts = AdapterEntry(name, Path(), base_model, base_revision, verdict=ACCEPTED)
    return AdapterStore(home).add(facts, fill)


def save_tensors(path: Path, tensors: dict[str, NDArray[np.float32]], kind: str = "F32") -> None:
    """A safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for key, numbers in tensors.items():
        stored = _stored(numbers, kind)
        header[key] = {
            "dtype": kind,
            "shape": list(numbers.shape),
            "data_offsets": [len(data), len(data) + len(stored)],
        }
        data += stored
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _stored(numbers: NDArray[np.float32], kind: str) -> bytes:
    if kind == "BF16":
        return (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return numbers.astype({"F32": np.float32, "F16": np.float16}[kind]).tobytes()
