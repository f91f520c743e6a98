"""The arrays that a step works with: the weights, and its buffers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shammah.errors import ShammahError
from workers.inference.engines.native.architecture import Architecture
from workers.inference.engines.native.layout import GROUP, INT4_GROUP, LANES, PANEL, padded
from workers.inference.engines.native.machine_code import MachineCode
from workers.inference.engines.native.operands import (
    Activations,
    Buffers,
    Matrix,
    Model,
    make_scratch,
)
from workers.inference.engines.native.packing_plan import matrices, parts
from workers.inference.engines.native.quantized_file import (
    UNWRITABLE,
    PartsInMemory,
    PartWriter,
    cache_path,
    new_file,
    open_parts,
)
from workers.inference.packages.checkpoint import Checkpoint

log = logging.getLogger(__name__)


def open_model(
    checkpoint: Checkpoint,
    architecture: Architecture,
    quantization: str,
    directory: Path,
    code: MachineCode,
    threads: int,
    advance: Callable[[], None],
) -> tuple[Model, str]:
    """The model's weights, mapped from ``directory``, and made there first if need be. Where they
    cannot be written they are made in memory, each time, and a sentence for people says so.

    Raises:
        ShammahError: as `quantize`.
    """
    path = cache_path(directory, checkpoint, quantization)
    wanted = parts(architecture, quantization)
    found = open_parts(path, wanted)
    if found is not None:
        return _model(found, architecture, quantization), ""
    from workers.inference.engines.native.quantizing import quantize

    def pack(target: AbstractContextManager[PartWriter]) -> None:
        quantize(
            checkpoint,
            architecture,
            quantization=quantization,
            target=target,
            code=code,
            threads=threads,
            advance=advance,
        )

    log.info("packing the weights into %s", path)
    note = f"Couldn't read back the packed weights in {directory}."
    try:
        pack(new_file(path, wanted))
        found = open_parts(path, wanted)
    except ShammahError as error:
        if error.code != UNWRITABLE:
            raise
        log.warning("%s", error)
        note = f"{error.message} They stay in memory and are packed again at each start. "
        note += error.hint
    if found is not None:
        return _model(found, architecture, quantization), ""
    memory = PartsInMemory(wanted)
    pack(nullcontext(memory))
    return _model(memory.parts, architecture, quantization), note


def model_of_zeros(architecture: Architecture, quantization: str) -> Model:
    """A model to compile with: its arrays have the types of every model's."""
    found = PartsInMemory(parts(architecture, quantization)).parts
    return _model(found, architecture, quantization)


def _model(found: dict[str, NDArray[Any]], architecture: Architecture, quantization: str) -> Model:
    for array in found.values():
        array.setflags(write=False)
    every = {matrix.name: matrix for matrix in matrices(architecture, quantization)}
    downs = (*every["down"].layers, *every["outer_down"].layers)

    def matrix(name: str, *, adds: bool = False) -> Matrix:
        weights, scales = found[f"{name}.weights"], found[f"{name}.scales"]
        return Matrix(every[name].bits, weights, scales, found[f"{name}.units"], adds)

    layers, size = architecture.layers, architecture.head_size
    return Model(
        eps=architecture.eps,
        embedding=matrix("embedding"),
        qk=matrix("qk"),
        v=matrix("v"),
        output=matrix("output", adds=True),
        gate_up=matrix("gate_up"),
        down=matrix("down", adds=True),
        outer_down=matrix("outer_down", adds=True),
        down_places=np.argsort(np.array(downs, np.int64)),
        head=matrix("embedding" if architecture.tied else "head"),
        attention_norm=found["attention_norm"],
        mlp_norm=found["mlp_norm"],
        final_norm=found["final_norm"][0],
        bias=found["bias"],
        head_norms=found["head_norms"].reshape(layers, -1, size),
    )


def make_buffers(
    architecture: Architecture, quantization: str, rows: int, outputs: int, threads: int
) -> Buffers:
    """Buffers for steps of up to ``rows`` rows with logits for up to ``outputs``."""
    a = architecture
    channels = {matrix.name: matrix.channels for matrix in matrices(a, quantization)}
    heads, small = padded(a.heads * a.head_size, GROUP), quantization == "int4"
    return Buffers(
        hidden=_zeros(rows, padded(a.hidden, GROUP)),
        normed=_zeros(rows, padded(a.hidden, GROUP)),
        qk=_zeros(rows, channels["qk"]),
        v=_zeros(rows, channels["v"]),
        queries=_zeros(rows, a.heads, a.head_size),
        attended=_zeros(rows, heads),
        gate_up=_zeros(rows, channels["gate_up"]),
        logits=_zeros(outputs, padded(a.vocabulary, PANEL)),
        narrow=_activations(rows, a.hidden, small=small),
        heads=_activations(rows, heads, small=small),
        wide=_activations(rows, a.intermediate, small=small),
        scratch=make_scratch(threads, padded(a.head_size, LANES), rows),
    )


def _zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


def _activations(rows: int, inputs: int, *, small: bool) -> Activations:
    """``small``: for weights of 4 bits, too."""
    inputs = padded(inputs, GROUP)
    groups, small_groups = inputs // GROUP, inputs // INT4_GROUP if small else 0
    return Activations(
        np.zeros((rows, inputs), np.int16),
        _zeros(rows, groups),
        np.zeros((rows, inputs), np.int8),
        _zeros(rows, small_groups),
        _zeros(rows, small_groups),
    )
