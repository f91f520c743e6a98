"""The weights on disk as the kernels want them: made once for each model, then mapped.

Beside ``<digest>.safetensors`` lies ``<digest>.json``, written last: without it, or when it
does not fit, the file is made anew. The digest is of the model's weight files (path, size, time
of change) and of the way of packing (`layout.VERSION`, and the quantisation), so a model that
changes gets another file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shammah.errors import ShammahError
from shammah.storage import files
from shammah.storage.disk import describe_remedy
from shammah.storage.files import replace_file
from workers.inference.engines.native.layout import VERSION
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.packages.safetensors_header import HeaderError, read_header

UNWRITABLE = "quantized_cache_unwritable"

_ALIGNMENT = 64
_KINDS: dict[str, Any] = {"I8": np.int8, "U16": np.uint16, "BF16": np.uint16, "F32": np.float32}


@dataclass(frozen=True, slots=True)
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


class PartWriter(Protocol):
    """Puts rows of parts where they belong."""

    def write(self, name: str, layer: int, begin: int, numbers: NDArray[Any]) -> None:
        """Put ``numbers`` at element ``begin`` of row ``layer`` of part ``name``."""


class PartsInMemory:
    """Parts that are made for this process alone: where no disk takes them."""

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self.parts = {part.name: np.zeros(part.shape, part.kind) for part in parts}

    def write(self, name: str, layer: int, begin: int, numbers: NDArray[Any]) -> None:
        """See `PartWriter`."""
        self.parts[name][layer].reshape(-1)[begin : begin + numbers.size] = numbers


class PartsInFile:
    """Parts of a file that is being made."""

    def __init__(self, descriptor: int, places: dict[str, tuple[int, Part]]) -> None:
        self._descriptor = descriptor
        self._places = places

    def write(self, name: str, layer: int, begin: int, numbers: NDArray[Any]) -> None:
        """See `PartWriter`."""
        first, part = self._places[name]
        element = numbers.itemsize
        row = math.prod(part.shape[1:]) * element
        offset = first + layer * row + begin * element
        data = np.ascontiguousarray(numbers).data.cast("B")
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            data, offset = data[written:], offset + written


def cache_path(directory: Path, checkpoint: Checkpoint, quantization: str) -> Path:
    """Where the packed weights of this model are, or will be."""
    digest = hashlib.sha256(f"shammah packing {VERSION} {quantization}".encode())
    for path in checkpoint.weights:
        real = path.resolve()
        found = real.stat()
        digest.update(f"\n{real} {found.st_size} {found.st_mtime_ns}".encode())
    return directory / f"{digest.hexdigest()[:32]}.safetensors"


def open_parts(path: Path, parts: tuple[Part, ...]) -> dict[str, NDArray[Any]] | None:
    """The parts, mapped read-only; ``None`` if the file is missing, damaged or another's."""
    try:
        manifest = json.loads(_manifest(path).read_bytes())
        if manifest != _facts(path.stat().st_size, parts):
            return None
        tensors = {tensor.name: tensor for tensor in read_header(path)}
        with path.open("rb") as file:
            (header,) = struct.unpack("<Q", file.read(8))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError, HeaderError):
        return None
    found: dict[str, NDArray[Any]] = {}
    for part in parts:
        tensor = tensors.get(part.name)
        if tensor is None or (tensor.dtype, tensor.shape) != (part.dtype, part.shape):
            return None
        array = np.frombuffer(mapped, part.kind, tensor.elements, 8 + header + tensor.begin)
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
        _manifest(path).unlink(missing_ok=True)
        with files.new_file(path) as draft:
            descriptor = os.open(draft, os.O_RDWR | os.O_CLOEXEC)
            try:
                places = _begin(descriptor, parts)
                yield PartsInFile(descriptor, places)
                size = os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
        replace_file(_manifest(path), json.dumps(_facts(size, parts)).encode())
    except OSError as error:
        raise ShammahError(
            UNWRITABLE,
            f"The packed weights cannot be written to {path.parent} ({error.strerror or error}).",
            describe_remedy(path.parent),
        ) from error


def _begin(descriptor: int, parts: tuple[Part, ...]) -> dict[str, tuple[int, Part]]:
    """Write the header and take the room; where each part begins."""
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
    _take_room(descriptor, data + position)
    return {part.name: (data + header[part.name]["data_offsets"][0], part) for part in parts}


def _take_room(descriptor: int, size: int) -> None:
    """So that a full disk is noticed now."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def _facts(size: int, parts: tuple[Part, ...]) -> dict[str, Any]:
    shapes = {part.name: [part.dtype, *part.shape] for part in parts}
    return {"format": 1, "packing": VERSION, "size": size, "parts": shapes}


def _manifest(path: Path) -> Path:
    return path.with_suffix(".json")
