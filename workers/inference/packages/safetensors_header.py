"""Reads and checks the header of a safetensors file, without reading its tensors.

The format: 8 bytes with the header's length (little endian), a JSON object that gives every
tensor's dtype, shape and byte range, then the data, which the ranges cover without a gap.
"""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import Any

from shammah.bus.record import record

MAX_HEADER_BYTES = 16 * 1024**2
"""Room for a hundred thousand tensors in one file, ten times what any published file holds. The
format's own limit, 100 MB, would let a damaged or malicious file take gigabytes of memory."""

_MAX_RANK = 64
_MAX_NUMBER = 2**63
"""The most dimensions, and the numbers that sizes stay below, in torch."""

_LENGTH_BYTES = 8
_METADATA = "__metadata__"

_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits of one element, of every dtype that the format knows."""


class HeaderError(ValueError):
    """The file is not whole; the message says what is wrong, with numbers."""


@record
class Tensor:
    """One tensor: ``begin`` and ``end`` are bytes of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path) -> tuple[Tensor, ...]:
    """The tensors of ``path`` in the order of their data.

    Raises:
        HeaderError: the header is broken, or the file's size is not what it says.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(_LENGTH_BYTES)
        if len(prefix) < _LENGTH_BYTES:
            raise HeaderError(f"it has {size} bytes, too few for a header")
        (length,) = struct.unpack("<Q", prefix)
        if length > size - _LENGTH_BYTES:
            raise HeaderError(f"it has {size} bytes, but its header alone should have {length}")
        if length > MAX_HEADER_BYTES:
            raise HeaderError(
                f"its header has {length:,} bytes, but at most {MAX_HEADER_BYTES:,} are allowed"
            )
        document = _parse(file.read(length))
    data = _LENGTH_BYTES + length
    tensors = sorted(
        (_tensor(name, entry, data) for name, entry in document.items() if name != _METADATA),
        key=lambda tensor: (tensor.begin, tensor.end),
    )
    _check_coverage(tensors, data, size)
    return tuple(tensors)


def _parse(header: bytes) -> dict[str, Any]:
    try:
        document = json.loads(header.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"its header is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise HeaderError("its header is not a JSON object")
    return document


def _tensor(name: str, entry: Any, data: int) -> Tensor:
    try:
        dtype, shape = entry["dtype"], entry["shape"]
        begin, end = entry["data_offsets"]
        numbers = [*shape, begin, end]
        # `type`, because True is an int too.
        if len(shape) > _MAX_RANK or any(
            type(number) is not int or not 0 <= number < _MAX_NUMBER for number in numbers
        ):
            raise TypeError
        bits = _BITS[dtype] * math.prod(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise HeaderError(f"its header describes tensor {name!r:.200} wrongly") from error
    if bits != 8 * (end - begin):
        raise HeaderError(
            f"its tensor {name!r:.200} ({dtype} {shape!r:.200}) needs {(bits + 7) // 8} bytes, "
            f"but its header gives it {end - begin}"
        )
    return Tensor(name, dtype, tuple(shape), data + begin, data + end)


def _check_coverage(tensors: list[Tensor], position: int, size: int) -> None:
    for tensor in tensors:
        if tensor.begin != position:
            raise HeaderError(
                f"its tensor {tensor.name!r:.200} begins at byte {tensor.begin} instead of "
                f"{position}"
            )
        position = tensor.end
    if position != size:
        raise HeaderError(f"it has {size} bytes, but its header says {position}")
