"""Rounds matrices to 4 bits and puts them in order; `layout` says how, `int4_rounding` does it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.inference.engines.native.layout import (
    GROUP,
    INT4_GROUP,
    PANEL,
    packed_sizes,
    padded,
)
from workers.inference.engines.native.machine_code import MachineCode
from workers.inference.engines.native.operands import SmallPacking

_PARTS = np.float32(16)
"""Of a step, in which the zero point is given."""


def pack_int4(
    matrix: NDArray[np.float32], code: MachineCode
) -> tuple[NDArray[np.int8], NDArray[np.uint16], NDArray[np.float32]]:
    """The packed weights, scales and units of a matrix of (channels, inputs), all flat."""
    channels, inputs = (padded(n, to) for n, to in zip(matrix.shape, (PANEL, GROUP), strict=True))
    whole = np.zeros((channels, inputs), np.float32)
    whole[: matrix.shape[0], : matrix.shape[1]] = matrix
    columns = np.ascontiguousarray(whole.reshape(-1, PANEL, inputs).transpose(0, 2, 1))
    weights, scales = packed_sizes(channels, inputs, 4)
    words, codes = np.zeros(weights // 2, np.uint16), np.zeros(scales, np.uint16)
    units = np.zeros(channels, np.float32)
    lines = np.zeros((inputs // INT4_GROUP, 2, PANEL), np.float32)
    group = np.zeros((INT4_GROUP, PANEL), np.float32)
    code["pack_int4"].run(
        SmallPacking(
            columns=columns, words=words, scales=codes, units=units, lines=lines, group=group
        )
    )
    return words.view(np.int8), codes, units


def unpack_int4(
    weights: NDArray[np.int8],
    scales: NDArray[np.uint16],
    units: NDArray[np.float32],
    channels: int,
    inputs: int,
) -> NDArray[np.float32]:
    """The matrix that is computed with in place of the one that was packed."""
    panels, width = padded(channels, PANEL) // PANEL, padded(inputs, GROUP)
    words = weights.view(np.uint16).reshape((panels, -1, 1, 1, INT4_GROUP // 8, PANEL, 2))
    numbers = (words >> np.array([[0, 4], [8, 12]], np.uint16).reshape(2, 2, 1, 1, 1)) & 15
    numbers = numbers.transpose((0, 5, 1, 2, 4, 3, 6)).reshape(panels, PANEL, -1, INT4_GROUP)
    codes = scales.reshape(panels, -1, PANEL, 1).transpose(0, 2, 1, 3)
    zeros = (codes >> 8).astype(np.float32) / _PARTS
    steps = (codes & 255) * units.reshape(panels, PANEL, 1, 1)
    matrix = (numbers - zeros) * steps
    return np.ascontiguousarray(matrix.reshape(-1, width)[:channels, :inputs], np.float32)
