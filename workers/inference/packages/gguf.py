"""Reads and checks the header of a GGUF file, without reading its tensors.

The format (ggml, docs/gguf.md): a magic number, the version, how many tensors and keys there are;
each key with its typed value; each tensor's name, dimensions, number format and offset; then,
aligned, the data. Such files come from strangers, so no number in one is believed before it has
been bounded: reading takes less than 100 MB of memory and a few seconds, whatever it says.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from shammah.bus.record import record
from shammah.errors import ShammahError
from shammah.models.catalogue import FETCH_AGAIN

OTHER = "Choose another model with --model."
"""What to do about a file that is not damaged, but of no use."""

MAX_HEADER_BYTES = 32 * 1024**2
"""Nearly all of it is the vocabulary: with 49,152 tokens and their merges, 1.8 MB."""

MAX_KEYS = 4096
MAX_TENSORS = 16_384
"""Published files have some 60 keys, and a few thousand tensors in one file."""

MAX_TEXT_BYTES = 4 * 1024**2
"""Of all keys, names and texts together that are kept; large arrays do not count."""

SHORT_ARRAY = 1024
"""Elements; longer arrays are passed over."""

_MAX_NAME_BYTES = 1024
_MAX_RANK = 4
_MAX_ELEMENTS = 2**48
_ALIGNMENTS = {2**power for power in range(17)}

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_WINDOW_BYTES = 1024**2
_INT, _LENGTH = struct.Struct("<I"), struct.Struct("<Q")

_NUMBERS = ("B", "b", "H", "h", "I", "i", "f", "?", "", "", "Q", "q", "d")
"""By the number of a value's type: its code in `struct`. 8 is a text, 9 an array."""
_TEXT, _ARRAY = 8, 9

_FORMATS: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
"""A tensor's number format: its name, the numbers in a block, and the bytes of a block. Source:
``GGML_QUANT_SIZES`` of the gguf package, 0.19, which a test compares."""


class HeaderError(ValueError):
    """What is wrong with a file; the message continues a sentence that begins with its name.

    ``code`` is ``model_corrupt`` or ``model_unsupported``.
    """

    def __init__(self, why: str, code: str = "model_corrupt") -> None:
        super().__init__(why)
        self.code = code


Value = bool | int | float | str | tuple[int | float, ...]
"""A short array of numbers is a tuple; any other is passed over, and an empty one."""


@record
class Tensor:
    """One tensor. ``shape``: the slowest dimension first; ``begin`` and ``end``: bytes of the
    file; ``format``: of its numbers, as ggml names it."""

    name: str
    format: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@record
class Header:
    """What a file says about itself."""

    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]

    def text(self, key: str) -> str:
        """The text of ``key``; empty: there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""

    def numbers(self, key: str) -> tuple[int | float, ...]:
        """The number of ``key``, or those of a short array; none: there are none."""
        value = self.metadata.get(key)
        if isinstance(value, tuple):
            return value
        return (value,) if isinstance(value, int | float) else ()


def read_header(path: Path) -> Header:
    """The header of a GGUF file.

    Raises:
        ShammahError: ``model_corrupt``: it is damaged, cannot be read or is no GGUF file;
            ``model_unsupported``: it is one of a kind that is not read.
    """
    try:
        with path.open("rb") as file:
            return parse_header(file, os.fstat(file.fileno()).st_size)
    except HeaderError as error:
        hint = FETCH_AGAIN if error.code == "model_corrupt" else OTHER
        raise ShammahError(error.code, f"{path.name} {error}.", hint) from error
    except OSError as error:
        why = f"{path.name} cannot be read ({error.strerror or error})."
        hint = "Check the file's permissions and the disk."
        raise ShammahError("model_corrupt", why, hint) from error


def parse_header(file: BinaryIO, size: int) -> Header:
    """The header of a GGUF file of ``size`` bytes, from whose beginning ``file`` is read.

    Raises:
        HeaderError: it is damaged, or of no kind that is read here.
        OSError: it cannot be read.
    """
    stream = _Stream(file, size)
    _check_version(stream)
    tensors = stream.count(MAX_TENSORS, "tensors", least=24)
    keys = stream.count(MAX_KEYS, "keys", least=13)
    metadata: dict[str, Value] = {}
    for _ in range(keys):
        key = stream.name()
        if key in metadata:
            raise HeaderError(f"is damaged: its header has the key {key!r:.80} twice")
        metadata[key] = _value(stream)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment not in _ALIGNMENTS:
        raise HeaderError(f"is damaged: its header gives {alignment!r:.40} as alignment")
    described = [_description(stream) for _ in range(tensors)]
    begin = stream.position + -stream.position % alignment
    found = [_placed(one, begin, alignment) for one in described]
    _check_places(found, size)
    return Header(metadata, tuple(found))


_Description = tuple[str, int, tuple[int, ...], int]
"""Name, number format, dimensions and offset of a tensor, as the file has them."""


class _Stream:
    """The bytes of a header, of which only a window is in memory."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._window = b""
        self._at = 0
        self._passed = 0
        self._kept = 0

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self._passed + self._at

    def take(self, count: int) -> bytes:
        """The next bytes."""
        end = self._at + count
        if end > len(self._window):
            self.require(count)
            rest = self._window[self._at :]
            self._passed += self._at
            limit = min(self._size, MAX_HEADER_BYTES) - self._passed
            more = max(count, min(_WINDOW_BYTES, limit)) - len(rest)
            self._window, self._at, end = rest + self._file.read(more), 0, count
            if len(self._window) < count:  # it has become shorter meanwhile
                raise self._truncated()
        taken = self._window[self._at : end]
        self._at = end
        return taken

    def integer(self) -> int:
        """The next 32 bits."""
        number: int
        (number,) = _INT.unpack(self.take(_INT.size))
        return number

    def length(self) -> int:
        """The next 64 bits."""
        number: int
        (number,) = _LENGTH.unpack(self.take(_LENGTH.size))
        return number

    def count(self, most: int, what: str, least: int) -> int:
        """A number of things of at least ``least`` bytes each."""
        number = self.length()
        if number > most:
            raise HeaderError(f"has {number:,} {what}, but at most {most:,} are allowed")
        self.require(number * least)
        return number

    def name(self) -> str:
        """A key, or the name of a tensor."""
        length = self.length()
        if not 0 < length <= _MAX_NAME_BYTES:
            raise HeaderError(f"is damaged: its header has a name of {length:,} bytes")
        try:
            return self._keep(length).decode()
        except UnicodeDecodeError:
            raise HeaderError("is damaged: its header has a name that is not UTF-8") from None

    def text(self) -> str:
        """A text, which may be long."""
        return self._keep(self.length()).decode("utf-8", "replace")

    def skip(self, count: int) -> None:
        """Pass over ``count`` bytes."""
        self.require(count)
        while count:
            count -= len(self.take(min(count, _WINDOW_BYTES)))

    def skip_texts(self, count: int) -> None:
        """Pass over ``count`` texts, their lengths in front."""
        self.require(_LENGTH.size * count)
        while count:
            # By hand for those within the window: there can be millions.
            window, at, last = self._window, self._at, len(self._window) - _LENGTH.size
            while count and at <= last:
                after = at + _LENGTH.size + _LENGTH.unpack_from(window, at)[0]
                if after > len(window):
                    break
                at, count = after, count - 1
            self._at = at
            if count:
                self.skip(self.length())
                count -= 1

    def _keep(self, count: int) -> bytes:
        self.require(count)
        self._kept += count
        if self._kept > MAX_TEXT_BYTES:
            raise HeaderError(f"has more than {MAX_TEXT_BYTES:,} bytes of text in its header")
        return self.take(count)

    def require(self, count: int) -> None:
        """Refuse what cannot follow, before it is read."""
        after = self.position + count
        if after > self._size:
            raise self._truncated()
        if after > MAX_HEADER_BYTES:
            raise HeaderError(
                f"has a header of more than {MAX_HEADER_BYTES:,} bytes, which are allowed"
            )

    def _truncated(self) -> HeaderError:
        return HeaderError(f"is damaged or cut off: its {self._size:,} bytes end within its header")


def _check_version(stream: _Stream) -> None:
    try:
        magic, raw = stream.take(len(_MAGIC)), b""
        if magic == _MAGIC:
            raw = stream.take(_INT.size)
    except HeaderError:
        raise HeaderError("is too short for a GGUF file") from None
    if magic != _MAGIC:
        why = "is a pointer of Git LFS" if magic == b"vers" else f"begins with {magic!r}"
        raise HeaderError(f"is not a GGUF file: it {why}")
    version = int.from_bytes(raw, "little")
    if version not in _VERSIONS and int.from_bytes(raw, "big") in (1, *_VERSIONS):
        why = "is a big-endian GGUF file, and only little-endian ones are supported"
        raise HeaderError(why, "model_unsupported")
    if version not in _VERSIONS:
        why = f"is a GGUF file of version {version}, and only versions 2 and 3 are supported"
        raise HeaderError(why, "model_unsupported")


def _value(stream: _Stream) -> Value:
    kind = stream.integer()
    if kind == _TEXT:
        return stream.text()
    if kind == _ARRAY:
        return _array(stream)
    code = _code(kind)
    value: bool | int | float
    (value,) = struct.unpack(f"<{code}", stream.take(struct.calcsize(code)))
    return value


def _array(stream: _Stream) -> tuple[int | float, ...]:
    kind, count = stream.integer(), stream.length()
    if kind == _TEXT:
        stream.skip_texts(count)
        return ()
    if kind == _ARRAY:  # ggml reads none either
        raise HeaderError("has arrays within arrays, which are not supported", "model_unsupported")
    code = _code(kind)
    size = count * struct.calcsize(code)
    if count <= SHORT_ARRAY:
        return struct.unpack(f"<{count}{code}", stream.take(size))
    stream.skip(size)
    return ()


def _code(kind: int) -> str:
    code = _NUMBERS[kind] if kind < len(_NUMBERS) else ""
    if not code:
        raise HeaderError(f"is damaged: its header has a value of the unknown type {kind}")
    return code


def _description(stream: _Stream) -> _Description:
    name, rank = stream.name(), stream.integer()
    if rank > _MAX_RANK:
        raise HeaderError(f"is damaged: its tensor {name!r:.80} has {rank} dimensions")
    shape = tuple(stream.length() for _ in range(rank))
    return name, stream.integer(), shape, stream.length()


def _placed(described: _Description, data_begin: int, alignment: int) -> Tensor:
    name, number, shape, offset = described
    if number not in _FORMATS:
        why = f"holds numbers in a format that is not known here (type {number} of {name!r:.80})"
        raise HeaderError(why, "model_unsupported")
    kind, block, size = _FORMATS[number]
    elements = math.prod(shape)
    if not 0 < elements < _MAX_ELEMENTS or (shape and shape[0] % block):
        raise HeaderError(f"is damaged: its tensor {name!r:.80} has the shape {shape!r:.90}")
    if offset % alignment:
        raise HeaderError(f"is damaged: its tensor {name!r:.80} begins at the odd place {offset}")
    begin = data_begin + offset
    return Tensor(name, kind, shape[::-1], begin, begin + elements // block * size)


def _check_places(tensors: list[Tensor], size: int) -> None:
    """Refuse tensors that are not in the file, or lie upon each other."""
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise HeaderError("is damaged: its header has the name of a tensor twice")
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.begin):
        if tensor.begin < end:
            raise HeaderError(f"is damaged: its tensor {tensor.name!r:.80} lies upon another one")
        end = tensor.end
        if end > size:
            raise HeaderError(
                f"is damaged or cut off: its tensor {tensor.name!r:.80} ends at byte {end:,}, "
                f"but the file has {size:,}"
            )
