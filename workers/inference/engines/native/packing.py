"""Rounds matrices to 8 bits and puts them in order; `layout` says how."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.inference.engines.native.layout import GROUP, PANEL, packed_sizes, padded
from workers.inference.engines.native.machine_code import MachineCode
from workers.inference.engines.native.operands import Packing

_PAIRS = GROUP // 2


def pack(
    matrix: NDArray[np.float32], code: MachineCode
) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    """The packed weights and scales of a matrix of (channels, inputs), both flat."""
    sizes = packed_sizes(*matrix.shape)
    weights, scales = np.zeros(sizes[0], np.int8), np.zeros(sizes[1], np.uint16)
    scratch = np.zeros(GROUP, np.float32), np.zeros(GROUP, np.int16)
    code["pack_int8"].run(Packing(np.ascontiguousarray(matrix), weights, scales, *scratch))
    return weights, scales


def unpack(
    weights: NDArray[np.int8], scales: NDArray[np.uint16], channels: int, inputs: int
) -> NDArray[np.float32]:
    """The matrix that is computed with in place of the one that was packed."""
    panels, groups = padded(channels, PANEL) // PANEL, padded(inputs, GROUP) // GROUP
    numbers = weights.reshape(panels, groups, _PAIRS, PANEL, 2).astype(np.float32)
    steps = (scales.astype(np.uint32) << 16).view(np.float32)
    matrix = numbers * steps.reshape(panels, groups, 1, PANEL, 1)
    flat = matrix.transpose(0, 3, 1, 2, 4).reshape(panels * PANEL, groups * GROUP)
    return np.ascontiguousarray(flat[:channels, :inputs])
