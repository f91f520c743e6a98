"""From a checkpoint's tensors to the packed weights, in blocks of a few megabytes.

Every linear layer's tensors are packed one after the other, each padded to whole panels, so
that q, k and v become one matrix, and gate and up another. What rounding leaves of v is packed
once more, as channels to be added: v is the smallest tensor, 1 to 3 % of all weights, and its
rounding alone does a quarter of all the damage (docs/PERFORMANCE.md).
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from shammah.errors import ShammahError
from workers.inference.checkpoint import Checkpoint
from workers.inference.native.architecture import Architecture
from workers.inference.native.layout import GROUP, PANEL, packed_sizes, padded
from workers.inference.native.packing import pack, unpack
from workers.inference.native.quantized_file import Part, PartWriter, new_file
from workers.inference.safetensors_header import Tensor, read_header

_BLOCK_NUMBERS = 4_000_000
_STORED = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}

_EMBEDDING, _HEAD, _FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_LAYER = "model.layers.{}."
_NOT_WEIGHTS = re.compile(r"\.rotary_emb\.inv_freq$")
_IN_LAYER = re.compile(r"\.\d+\.")


class Tensors:
    """The tensors of a checkpoint by name. Read, not mapped: what is mapped counts as memory."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._places: dict[str, tuple[Tensor, BinaryIO, int]] = {}
        for path in checkpoint.weights:
            file = path.open("rb")
            (header,) = struct.unpack("<Q", file.read(8))
            for tensor in read_header(path):
                self._places[tensor.name] = (tensor, file, 8 + header + tensor.begin)

    @property
    def names(self) -> set[str]:
        return set(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Empty if there is no such tensor."""
        return self._places[name][0].shape if name in self._places else ()

    def rows(self, name: str, begin: int = 0, count: int | None = None) -> NDArray[np.float32]:
        """Up to ``count`` rows of a tensor (of a vector: numbers), as float32."""
        tensor, file, offset = self._places[name]
        if tensor.dtype not in _STORED:
            raise ShammahError(
                "model_unsupported",
                f"The model's {name} is stored as {tensor.dtype}, which is not supported.",
                "Name a model whose weights are bfloat16, float16 or float32.",
            )
        kind = np.dtype(_STORED[tensor.dtype])
        row = math.prod(tensor.shape[1:]) * kind.itemsize
        end = tensor.shape[0] if count is None else min(tensor.shape[0], begin + count)
        stored = np.frombuffer(_read(file, offset + begin * row, (end - begin) * row), kind)
        stored = stored.reshape(end - begin, *tensor.shape[1:])
        if tensor.dtype == "BF16":
            bits = stored.astype(np.uint32)
            bits <<= 16
            return bits.view(np.float32)
        return stored.astype(np.float32)

    def close(self) -> None:
        for _, file, _ in self._places.values():
            file.close()


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    """Any thread may; a system call gives 2 GiB at most, which no block comes near."""
    data = os.pread(file.fileno(), size, offset)
    if len(data) != size:
        raise ShammahError(
            "model_corrupt",
            f"{file.name} ends too early.",
            "Fetch the model again, or name another one with --model.",
        )
    return data


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of a layer that becomes ``channels`` channels, or what rounding left of it."""

    name: str
    channels: int
    remainder: bool = False


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """One matrix of every layer (or one for all).

    The channels of each source are padded to a multiple of ``padding``.
    """

    name: str
    layers: int
    inputs: int
    sources: tuple[Source, ...]
    padding: int = PANEL

    @property
    def channels(self) -> int:
        """Those that pad it included."""
        return sum(padded(source.channels, self.padding) for source in self.sources)


@dataclass(frozen=True, slots=True)
class PlainVector:
    """One float32 vector of every layer (or one for all)."""

    name: str
    layers: int
    sources: tuple[Source, ...]
    padding: int = 1

    @property
    def size(self) -> int:
        return sum(padded(source.channels, self.padding) for source in self.sources)


def matrices(architecture: Architecture) -> tuple[PackedMatrix, ...]:
    a = architecture
    q, kv, wide = a.heads * a.head_size, a.kv_heads * a.head_size, a.intermediate
    attention, mlp = _LAYER + "self_attn.{}_proj.weight", _LAYER + "mlp.{}_proj.weight"
    qkv = (
        Source(attention.format("{}", "q"), q),
        Source(attention.format("{}", "k"), kv),
        Source(attention.format("{}", "v"), kv),
        Source(attention.format("{}", "v"), kv, remainder=True),
    )
    output = (Source(attention.format("{}", "o"), a.hidden),)
    gate_up = tuple(Source(mlp.format("{}", name), wide) for name in ("gate", "up"))
    down = (Source(mlp.format("{}", "down"), a.hidden),)
    head = PackedMatrix("head", 1, a.hidden, (Source(_HEAD, a.vocabulary),))
    return (
        PackedMatrix("embedding", 1, a.hidden, (Source(_EMBEDDING, a.vocabulary),)),
        *(() if a.tied else (head,)),
        PackedMatrix("qkv", a.layers, a.hidden, qkv),
        PackedMatrix("output", a.layers, q, output),
        PackedMatrix("gate_up", a.layers, a.hidden, gate_up, GROUP),
        PackedMatrix("down", a.layers, wide, down),
    )


def vectors(architecture: Architecture) -> tuple[PlainVector, ...]:
    """What an architecture does not have is there, with a size of 0."""
    a = architecture
    q, kv = a.heads * a.head_size, a.kv_heads * a.head_size
    bias, norm = _LAYER + "self_attn.{}_proj.bias", _LAYER + "self_attn.{}_norm.weight"
    biases = tuple(
        Source(bias.format("{}", name), count) for name, count in (("q", q), ("k", kv), ("v", kv))
    )
    norms = tuple(Source(norm.format("{}", name), a.head_size) for name in "qk")
    before, after = _LAYER + "input_layernorm.weight", _LAYER + "post_attention_layernorm.weight"
    return (
        PlainVector("attention_norm", a.layers, (Source(before, a.hidden),)),
        PlainVector("mlp_norm", a.layers, (Source(after, a.hidden),)),
        PlainVector("final_norm", 1, (Source(_FINAL_NORM, a.hidden),)),
        PlainVector("bias", a.layers, biases if a.has_bias else (), PANEL),
        PlainVector("head_norms", a.layers, norms if a.has_head_norms else ()),
    )


def parts(architecture: Architecture) -> tuple[Part, ...]:
    """What the file of packed weights holds."""
    found = [Part(v.name, "F32", (v.layers, v.size)) for v in vectors(architecture)]
    for matrix in matrices(architecture):
        weights, scales = packed_sizes(matrix.channels, matrix.inputs)
        found.append(Part(f"{matrix.name}.weights", "I8", (matrix.layers, weights)))
        found.append(Part(f"{matrix.name}.scales", "BF16", (matrix.layers, scales)))
    return tuple(found)


def quantize(
    checkpoint: Checkpoint,
    architecture: Architecture,
    path: Path,
    threads: int,
    advance: Callable[[], None],
) -> None:
    """Make the file at ``path``; ``advance`` is called for each tensor that is packed.

    Raises:
        ShammahError: ``model_config_invalid``, ``model_unsupported`` or
            ``quantized_cache_unwritable``.
    """
    with closing(Tensors(checkpoint)) as tensors:
        _check(tensors, architecture)
        _write(tensors, architecture, path, threads, advance)


def _write(
    tensors: Tensors,
    architecture: Architecture,
    path: Path,
    threads: int,
    advance: Callable[[], None],
) -> None:
    with new_file(path, parts(architecture)) as writer:
        for vector in vectors(architecture):
            for layer in range(vector.layers):
                begin = 0
                for source in vector.sources:
                    numbers = tensors.rows(source.name.format(layer))
                    writer.write(vector.name, layer, begin, numbers)
                    begin += padded(source.channels, vector.padding)
        with ThreadPoolExecutor(threads) as pool:
            packed = pool.map(lambda job: _pack_source(tensors, writer, *job), _jobs(architecture))
            for _ in packed:
                advance()


def _jobs(architecture: Architecture) -> Iterator[tuple[PackedMatrix, Source, int, int]]:
    """Every source of every matrix, with its layer and its first channel."""
    for matrix in matrices(architecture):
        for layer in range(matrix.layers):
            channel = 0
            for source in matrix.sources:
                yield matrix, source, layer, channel
                channel += padded(source.channels, matrix.padding)


def _pack_source(
    tensors: Tensors,
    writer: PartWriter,
    matrix: PackedMatrix,
    source: Source,
    layer: int,
    channel: int,
) -> None:
    """Pack one tensor as the channels of ``matrix`` from ``channel``."""
    groups = padded(matrix.inputs, GROUP) // GROUP
    step = max(PANEL, _BLOCK_NUMBERS // matrix.inputs // PANEL * PANEL)
    for begin in range(0, source.channels, step):
        block = tensors.rows(source.name.format(layer), begin, step)
        weights, scales = pack(block)
        if source.remainder:
            weights, scales = pack(block - unpack(weights, scales, *block.shape))
        at = (channel + begin) * groups
        writer.write(f"{matrix.name}.weights", layer, at * GROUP, weights)
        writer.write(f"{matrix.name}.scales", layer, at, scales)


def _check(tensors: Tensors, architecture: Architecture) -> None:
    """Whether the checkpoint holds what its configuration says, and nothing else in its layers."""
    wanted: dict[str, tuple[int, ...]] = {}
    for matrix in matrices(architecture):
        for source in matrix.sources:
            for layer in range(matrix.layers):
                wanted[source.name.format(layer)] = (source.channels, matrix.inputs)
    for vector in vectors(architecture):
        for source in vector.sources:
            for layer in range(vector.layers):
                wanted[source.name.format(layer)] = (source.channels,)
    for name, shape in wanted.items():
        found = tensors.shape(name)
        if found != shape:
            held = f"hold {name} as {list(found)}" if found else f"lack {name}"
            raise _config_invalid(f"The weights {held}, but config.json says {list(shape)}.")
    strangers = sorted(
        name
        for name in tensors.names - set(wanted)
        if _IN_LAYER.search(name) and not _NOT_WEIGHTS.search(name)
    )
    if strangers:
        raise _config_invalid(
            f"The weights hold {len(strangers)} tensors that config.json does not describe "
            f"({strangers[0]}, ...)."
        )


def _config_invalid(why: str) -> ShammahError:
    return ShammahError(
        "model_config_invalid", why, "Fetch the model again, or name another one with --model."
    )
