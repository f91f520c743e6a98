"""From a checkpoint's tensors to the packed weights, in blocks of a few megabytes.

`packing_plan` says what becomes what.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from shammah.errors import ShammahError
from shammah.models.catalogue import FETCH_AGAIN
from shammah.models.published_bits import USE_ORIGINAL
from workers.inference.engines.native.architecture import Architecture
from workers.inference.engines.native.int4_packing import pack_int4
from workers.inference.engines.native.int6_packing import pack_int6
from workers.inference.engines.native.layout import PANEL, packed_sizes, padded
from workers.inference.engines.native.machine_code import MachineCode
from workers.inference.engines.native.packing import pack, unpack
from workers.inference.engines.native.packing_plan import (
    PackedMatrix,
    Source,
    matrices,
    vectors,
)
from workers.inference.engines.native.published_packing import pack_published
from workers.inference.engines.native.quantized_file import PartWriter
from workers.inference.packages.checkpoint import Checkpoint, read_configuration, read_layers
from workers.inference.packages.published_layers import (
    GROUPS,
    SCALES,
    SUFFIXES,
    WORDS,
    ZEROS,
)
from workers.inference.packages.published_numbers import PublishedWeights
from workers.inference.packages.safetensors_header import Tensor, read_header
from workers.model_classes import not_finite

_BLOCK_NUMBERS = 4_000_000
_STORED = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}

_NOT_WEIGHTS = re.compile(r"\.rotary_emb\.inv_freq$")
_IN_LAYER = re.compile(r"\.\d+\.")


class Tensors:
    """The tensors of a checkpoint by name; of a layer that was published in 4 bits, the name that
    its weights would have. Read, not mapped: what is mapped counts as memory.

    Raises:
        ShammahError: see `read_layers`.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._places: dict[str, tuple[Tensor, BinaryIO]] = {}
        for path in checkpoint.weights:
            file = path.open("rb")
            self._places |= {tensor.name: (tensor, file) for tensor in read_header(path)}
        every = [tensor for tensor, _ in self._places.values()]
        self._bits, found = read_layers(read_configuration(checkpoint.directory), every)
        self._layers = {f"{name}.weight": layer for name, layer in found.items()}

    @property
    def names(self) -> set[str]:
        parts = {layer.name + suffix for layer in self._layers.values() for suffix in SUFFIXES}
        return set(self._places) - parts | set(self._layers)

    def is_published(self, name: str) -> bool:
        """Whether this layer's weights were published in 4 bits."""
        return name in self._layers

    def shape(self, name: str) -> tuple[int, ...]:
        """Empty if there is no such tensor."""
        if name in self._layers:
            return self._layers[name].channels, self._layers[name].inputs
        return self._places[name][0].shape if name in self._places else ()

    def published(self, name: str) -> PublishedWeights:
        """The weights of a layer in 4 bits.

        Raises:
            ShammahError: ``model_unsupported``: its groups are scattered; or as `rows`.
        """
        layer, bits = self._layers[name], self._bits
        assert bits is not None  # there are no layers then
        if layer.name + GROUPS in self._places:
            groups = self._words(layer.name + GROUPS)
            if groups.any() and (groups != np.arange(layer.inputs) // bits.group).any():
                raise ShammahError(
                    "model_unsupported",
                    f"The groups of {layer.name} are scattered over its inputs (desc_act), which "
                    "is not supported.",
                    USE_ORIGINAL,
                )
        words, zeros = (self._words(layer.name + suffix) for suffix in (WORDS, ZEROS))
        return PublishedWeights(bits, words, zeros, self.rows(layer.name + SCALES))

    def _words(self, name: str) -> NDArray[np.int32]:
        tensor, file = self._places[name]
        data = _read(file, tensor.begin, tensor.end - tensor.begin)
        return np.frombuffer(data, np.int32).reshape(tensor.shape)

    def rows(self, name: str, begin: int = 0, count: int | None = None) -> NDArray[np.float32]:
        """Up to ``count`` rows of a tensor (of a vector: numbers), as float32.

        Raises:
            ShammahError: ``model_unsupported``, or ``model_corrupt``: not all are numbers, and
                would be packed as confident nonsense.
        """
        tensor, file = self._places[name]
        if tensor.dtype not in _STORED:
            raise ShammahError(
                "model_unsupported",
                f"The model's {name} is stored as {tensor.dtype}, which is not supported.",
                "Choose a model with bfloat16, float16 or float32 weights.",
            )
        kind = np.dtype(_STORED[tensor.dtype])
        row = math.prod(tensor.shape[1:]) * kind.itemsize
        end = tensor.shape[0] if count is None else min(tensor.shape[0], begin + count)
        stored = np.frombuffer(_read(file, tensor.begin + begin * row, (end - begin) * row), kind)
        stored = stored.reshape(end - begin, *tensor.shape[1:])
        if tensor.dtype == "BF16":
            bits = stored.astype(np.uint32)
            bits <<= 16
            found = bits.view(np.float32)
        else:
            found = stored.astype(np.float32)
        if not np.isfinite(found).all():
            raise not_finite(name)
        return found

    def close(self) -> None:
        for _, file in self._places.values():
            file.close()


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    """Any thread may; a system call gives 2 GiB at most, which no block comes near."""
    data = os.pread(file.fileno(), size, offset)
    if len(data) != size:
        raise ShammahError("model_corrupt", f"{file.name} is truncated.", FETCH_AGAIN)
    return data


def quantize(
    checkpoint: Checkpoint,
    architecture: Architecture,
    quantization: str,
    target: AbstractContextManager[PartWriter],
    code: MachineCode,
    threads: int,
    advance: Callable[[], None],
) -> None:
    """Write the packed weights to ``target``, which is entered once the weights are known to be
    whole; ``advance`` is called for each tensor that is packed.

    Raises:
        ShammahError: ``model_config_invalid``, ``model_corrupt`` or ``model_unsupported``; or as
            ``target`` does.
    """
    with closing(Tensors(checkpoint)) as tensors:
        every = matrices(architecture, quantization)
        _check(tensors, architecture, every)
        with target as writer, ThreadPoolExecutor(threads) as pool:
            for vector in vectors(architecture):
                for layer in range(vector.layers):
                    begin = 0
                    for source in vector.sources:
                        numbers = tensors.rows(source.name.format(layer))
                        writer.write(vector.name, layer, begin, numbers)
                        begin += padded(source.channels, vector.padding)
            for _ in pool.map(lambda job: _pack_source(tensors, writer, code, *job), _jobs(every)):
                advance()


def _jobs(
    every: tuple[PackedMatrix, ...],
) -> Iterator[tuple[PackedMatrix, Source, int, int]]:
    """Every source of every matrix, with the place of its layer and its first channel."""
    for matrix in every:
        for place in range(len(matrix.layers)):
            channel = 0
            for source in matrix.sources:
                yield matrix, source, place, channel
                channel += padded(source.channels, matrix.padding)


def _pack_source(
    tensors: Tensors,
    writer: PartWriter,
    code: MachineCode,
    matrix: PackedMatrix,
    source: Source,
    place: int,
    channel: int,
) -> None:
    """Pack one tensor as the channels of ``matrix`` from ``channel``."""
    name = source.name.format(matrix.layers[place])
    published = tensors.published(name) if matrix.bits == 4 and tensors.is_published(name) else None
    step = max(PANEL, _BLOCK_NUMBERS // matrix.inputs // PANEL * PANEL)
    for begin in range(0, source.channels, step):
        at = channel + begin
        weights_at, scales_at = packed_sizes(at, matrix.inputs, matrix.bits)
        if published is not None:
            numbers = published.channels(begin, begin + step)
            weights, scales, units = pack_published(*numbers, published.bits.group)
            writer.write(f"{matrix.name}.units", place, at, units)
        elif matrix.bits == 4:
            weights, scales, units = pack_int4(tensors.rows(name, begin, step), code)
            writer.write(f"{matrix.name}.units", place, at, units)
        else:
            block = tensors.rows(name, begin, step)
            weights, scales = pack(block, code) if matrix.bits == 8 else pack_int6(block)
            if source.remainder:
                weights, scales = pack(block - unpack(weights, scales, *block.shape), code)
        writer.write(f"{matrix.name}.weights", place, weights_at, weights)
        writer.write(f"{matrix.name}.scales", place, scales_at, scales)


def _check(tensors: Tensors, architecture: Architecture, every: tuple[PackedMatrix, ...]) -> None:
    """Whether the checkpoint holds what its configuration says, and nothing else in its layers."""
    wanted: dict[str, tuple[int, ...]] = {
        source.name.format(matrix.layers[place]): (source.channels, matrix.inputs)
        for matrix, source, place, _ in _jobs(every)
    }
    for vector in vectors(architecture):
        for source in vector.sources:
            for layer in range(vector.layers):
                wanted[source.name.format(layer)] = (source.channels,)
    for name, shape in wanted.items():
        found = tensors.shape(name)
        if found != shape:
            held = f"hold {name} as {list(found)}" if found else f"lack {name}"
            raise _config_invalid(f"The weights {held}, but config.json says {list(shape)}.")
    for matrix, source, place, _ in _jobs(every):
        _check_bits(tensors, architecture, source.name.format(matrix.layers[place]), matrix.bits)
    strangers = sorted(
        name
        for name in tensors.names - set(wanted)
        if _IN_LAYER.search(name)
        and not _NOT_WEIGHTS.search(name)
        and not _adds_nothing(tensors, name)
    )
    if strangers:
        raise _config_invalid(
            f"The weights hold {len(strangers)} tensors that config.json does not describe "
            f"({strangers[0]}, ...)."
        )


def _check_bits(tensors: Tensors, architecture: Architecture, name: str, bits: int) -> None:
    """Where a checkpoint was published in 4 bits, all layers have them, and nothing else."""
    is_published = tensors.is_published(name)
    if architecture.published and is_published != (bits == 4):
        held = "4 bits" if is_published else "16 bits (modules_to_not_convert)"
        raise ShammahError(
            "model_unsupported",
            f"The model's {name} is in {held}; only checkpoints are read that have all layers in "
            "4 bits and the rest in 16.",
            USE_ORIGINAL,
        )


def _adds_nothing(tensors: Tensors, name: str) -> bool:
    """Whether this is a bias of zeros: AutoGPTQ writes one for each layer without a bias."""
    layer = name.removesuffix(".bias") + ".weight"
    return tensors.is_published(layer) and not tensors.rows(name).any()


def _config_invalid(why: str) -> ShammahError:
    return ShammahError("model_config_invalid", why, FETCH_AGAIN)
