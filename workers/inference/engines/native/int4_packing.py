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
