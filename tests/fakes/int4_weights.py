"""The weights that are computed with in place of those that were packed in 4 or 6 bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.inference.engines.native.layout import GROUP, INT4_GROUP, PANEL, padded

_PARTS = np.float32(16)
"""Of a step, in which the zero point is given."""


def unpack_int4(
    weights: NDArray[np.int8],
    scales: NDArray[np.uint16],
    units: NDArray[np.float32],
    channels: int,
    inputs: int,
) -> NDArray[np.float32]:
    """The matrix of packed weights, scales and units, all flat; `layout` says how they lie."""
    panels, width = padded(channels, PANEL) // PANEL, padded(inputs, GROUP)
    words = weights.view(np.uint16).reshape((panels, -1, 1, 1, INT4_GROUP // 8, PANEL, 2))
    numbers = (words >> np.array([[0, 4], [8, 12]], np.uint16).reshape(2, 2, 1, 1, 1)) & 15
    numbers = numbers.transpose((0, 5, 1, 2, 4, 3, 6)).reshape(panels, PANEL, -1, INT4_GROUP)
    codes = scales.reshape(panels, -1, PANEL, 1).transpose(0, 2, 1, 3)
    zeros = (codes >> 8).astype(np.float32) / _PARTS
    steps = (codes & 255) * units.reshape(panels, PANEL, 1, 1)
    matrix = (numbers - zeros) * steps
    return np.ascontiguousarray(matrix.reshape(-1, width)[:channels, :inputs], np.float32)


def unpack_int6(
    weights: NDArray[np.int8], scales: NDArray[np.uint16], channels: int, inputs: int
) -> NDArray[np.float32]:
    """The matrix of packed weights and scales, both flat."""
    panels, width = padded(channels, PANEL) // PANEL, padded(inputs, GROUP)
    found = np.zeros((panels * PANEL, width), np.float32)
    blocks = weights.view(np.uint8).reshape(panels, -1, 6, PANEL, 4)
    for k in range(width):
        group, half, block, pair, odd = (
            k // INT4_GROUP,
            k % INT4_GROUP // 16,
            k % 16 // 4,
            k % 4 // 2,
            k % 2,
        )
        place = 2 * odd + half
        low = blocks[:, group, block, :, place] >> (4 * pair) & 15
        upper = blocks[:, group, 4 + block // 2, :, place] >> (4 * (block % 2) + 2 * pair) & 3
        found[:, k] = (low.astype(np.float32) + 16 * upper - 32).reshape(-1)
    steps = (scales.astype(np.uint32) << 16).view(np.float32).reshape(panels, -1, PANEL)
    found *= steps.transpose(0, 2, 1).reshape(panels * PANEL, -1).repeat(GROUP, 1)
    return np.ascontiguousarray(found[:channels, :inputs])
