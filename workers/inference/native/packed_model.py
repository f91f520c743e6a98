"""The arrays that a step works with: the weights, and the room it needs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.inference.checkpoint import Checkpoint
from workers.inference.native.architecture import Architecture
from workers.inference.native.attention import make_desk
from workers.inference.native.lanes import LANES
from workers.inference.native.layout import GROUP, PANEL, padded
from workers.inference.native.products import Activations
from workers.inference.native.quantized_file import cache_path, open_parts
from workers.inference.native.quantizing import matrices, parts, quantize
from workers.inference.native.step import Matrix, Model, Room

log = logging.getLogger(__name__)


def open_model(
    checkpoint: Checkpoint,
    architecture: Architecture,
    directory: Path,
    threads: int,
    advance: Callable[[], None],
) -> Model:
    """The model's weights, mapped from ``directory``, and made there first if need be.

    Raises:
        ShammahError: as `quantize`.
    """
    path = cache_path(directory, checkpoint)
    wanted = parts(architecture)
    found = open_parts(path, wanted)
    if found is None:
        log.info("packing the weights into %s", path)
        quantize(checkpoint, architecture, path, threads, advance)
        found = open_parts(path, wanted)
        assert found is not None, f"{path} was written and is not whole"
    return _model(found, architecture)


def model_of_zeros(architecture: Architecture) -> Model:
    """A model to compile with: its arrays have the types of every model's."""
    found = {part.name: np.zeros(part.shape, part.kind) for part in parts(architecture)}
    for array in found.values():
        array.setflags(write=False)
    return _model(found, architecture)


def _model(found: dict[str, NDArray[Any]], architecture: Architecture) -> Model:
    def matrix(name: str, *, adds: bool = False) -> Matrix:
        return Matrix(found[f"{name}.weights"], found[f"{name}.scales"], adds)

    layers, size = architecture.layers, architecture.head_size
    return Model(
        eps=architecture.eps,
        embedding=matrix("embedding"),
        qkv=matrix("qkv"),
        output=matrix("output", adds=True),
        gate_up=matrix("gate_up"),
        down=matrix("down", adds=True),
        head=matrix("embedding" if architecture.tied else "head"),
        attention_norm=found["attention_norm"],
        mlp_norm=found["mlp_norm"],
        final_norm=found["final_norm"][0],
        bias=found["bias"],
        head_norms=found["head_norms"].reshape(layers, -1, size),
    )


def make_room(architecture: Architecture, rows: int, answers: int, members: int) -> Room:
    """Room for a team's steps of up to ``rows`` rows with logits for up to ``answers``."""
    a = architecture
    channels = {matrix.name: matrix.channels for matrix in matrices(a)}
    heads = padded(a.heads * a.head_size, GROUP)
    return Room(
        hidden=_zeros(rows, padded(a.hidden, GROUP)),
        normed=_zeros(rows, padded(a.hidden, GROUP)),
        qkv=_zeros(rows, channels["qkv"]),
        queries=_zeros(rows, a.heads, a.head_size),
        attended=_zeros(rows, heads),
        gate_up=_zeros(rows, channels["gate_up"]),
        logits=_zeros(answers, padded(a.vocabulary, PANEL)),
        narrow=_activations(rows, a.hidden),
        heads=_activations(rows, heads),
        wide=_activations(rows, a.intermediate),
        desk=make_desk(members, padded(a.head_size, LANES)),
    )


def _zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


def _activations(rows: int, inputs: int) -> Activations:
    groups = padded(inputs, GROUP) // GROUP
    return Activations(np.zeros((rows, groups * GROUP), np.int16), _zeros(rows, groups))
