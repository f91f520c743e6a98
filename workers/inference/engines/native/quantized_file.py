"""The weights on disk as the kernels want them: made once for each model, then mapped.

``<digest>.safetensors`` appears whole or not at all, and is made again if its header does not
fit. The digest is of the model's weight files (path, size, time of change) and of the way of
packing (`layout.VERSION`, and the quantization), so a model that changes gets another file.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shammah.bus.record import record
from shammah.errors import ShammahError
from shammah.storage import files
from shammah.storage.disk import describe_remedy
from workers.inference.engines.native.layout import VERSION
from workers.inference.packages.checkpoint import Checkpoint, digest_of_files
from workers.inference.packages.safetensors_header import read_header

UNWRITABLE = "quantized_cache_unwritable"

_ALIGNMENT = 64
_KINDS: dict[str, Any] = {"I8": np.int8, "U16": np.uint16, "BF16": np.uint16, "F32": np.float32}


@record
class Part:
    """One array of the file: all layers of one kind of weight."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def kind(self) -> np.dtype[Any]:
        kind: np.dtype[Any] = np.dtype(_KINDS[self.dtype])
        return kind

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.kind.itemsize


class PartsInMemory:
    """Parts that are made for this process alone, where they cannot be written to a disk."""

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self.parts = {part.name: np.zeros(part.shape, part.kind) for part in parts}

    def write(self, name: str, layer: int, begin: int, numbers: NDArray[Any]) -> None:
        """Put ``numbers`` at element ``begin`` of row ``layer`` of part ``name``."""
        self.parts[name][layer].reshape(-1)[begin : begin + numbers.size] = numbers


class PartsInFile:
    """Parts of a file that is being made."""

    def __init__(self, descriptor: int, places: dict[str, tuple[int, Part]]) -> None:
        self._descriptor = descriptor
        self._places = places

    def write(self, name: str, layer: int, begin: int, numbers: NDArray[Any]) -> None:
        """See `PartsInMemory.write`."""
        first, part = self._places[name]
        element = numbers.itemsize
        row = math.prod(part.shape[1:]) * element
        offset = first + layer * row + begin * element
        data = np.ascontiguousarray(numbers).data.cast("B")
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            data, offset = data[written:], offset + written


PartWriter = PartsInMemory | PartsInFile


def cache_path(directory: Path, checkpoint: Checkpoint, quantization: str) -> Path:
    """Where the packed weights of this model are, or will be."""
    digest = digest_of_files(f"shammah packing {VERSION} {quantization}", checkpoint.weights)
    return directory / f"{digest}.safetensors"


def open_parts(path: Path, parts: tuple[Part, ...]) -> dict[str, NDArray[Any]] | None:
    """The parts, mapped read-only; ``None`` if the file is missing, damaged or another's."""
    try:
        tensors = {tensor.name: tensor for tensor in read_header(path)}
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return None
    found: dict[str, NDArray[Any]] = {}
    for part in parts:
        tensor = tensors.get(part.name)
        if tensor is None or (tensor.dtype, tensor.shape) != (part.dtype, part.shape):
            return None
        array = np.frombuffer(mapped, part.kind, tensor.elements, tensor.begin)
        found[part.name] = array.reshape(part.shape)
    return found


@contextlib.contextmanager
def new_file(path: Path, parts: tuple[Part, ...]) -> Iterator[PartsInFile]:
    """Make the file; it appears whole when the block ends, or not at all.

    Raises:
        ShammahError: ``quantized_cache_unwritable``.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with files.new_file(path) as draft:
            descriptor = os.open(draft, os.O_RDWR | os.O_CLOEXEC)
            try:
                yield PartsInFile(descriptor, _begin(descriptor, parts))
            finally:
                os.close(descriptor)
    except OSError as error:
        raise ShammahError(
            UNWRITABLE,
            f"Couldn't write the packed weights to {path.parent} ({error.strerror or error}).",
            describe_remedy(path.parent),
        ) from error


def _begin(descriptor: int, parts: tuple[Part, ...]) -> dict[str, tuple[int, Part]]:
    """Write the header and allocate the file; return where each part begins."""
    header: dict[str, Any] = {"__metadata__": {"format": f"shammah packing {VERSION}"}}
    position = 0
    for part in parts:
        end = position + part.size
        header[part.name] = {
            "dtype": part.dtype,
            "shape": list(part.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    os.write(descriptor, struct.pack("<Q", len(text)) + text)
    data = 8 + len(text)
    if hasattr(os, "posix_fallocate"):  # so that a full disk is noticed now
        os.posix_fallocate(descriptor, 0, data + position)
    else:
        os.ftruncate(descriptor, data + position)
    return {part.name: (data + header[part.name]["data_offsets"][0], part) for part in parts}
