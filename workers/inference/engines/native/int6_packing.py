"""Rounds matrices to 6 bits and puts them in order; `layout` says how."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.inference.engines.native.layout import GROUP, INT4_GROUP, PANEL, padded

_LARGEST, _ZERO = np.float32(31), np.float32(32)


def pack_int6(matrix: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    """The packed weights and scales of a matrix of (channels, inputs), both flat."""
    channels, inputs = (padded(n, to) for n, to in zip(matrix.shape, (PANEL, GROUP), strict=True))
    whole = np.zeros((channels, inputs), np.float32)
    whole[: matrix.shape[0], : matrix.shape[1]] = matrix
    groups = whole.reshape(channels, -1, GROUP)
    least = abs(groups).max(-1) / _LARGEST
    scales = ((least.view(np.uint32) + np.uint32(0xFFFF)) >> np.uint32(16)).astype(np.uint16)
    steps = (scales.astype(np.uint32) << np.uint32(16)).view(np.float32)
    groups /= np.where(steps > 0, steps, np.float32(1))[..., None]
    numbers = (np.rint(groups) + _ZERO).astype(np.uint16)
    # Of an input within its group: the half, the two blocks, the block, the pair, the place in it.
    places = numbers.reshape((-1, PANEL, inputs // INT4_GROUP, 2, 2, 2, 2, 2))
    words = np.zeros((channels // PANEL, inputs // INT4_GROUP, 6, PANEL, 2), np.uint16)
    lower = words[:, :, :4].reshape((*words.shape[:2], 2, 2, PANEL, 2))
    upper = words[:, :, 4:]
    for half, pair in np.ndindex(2, 2):
        own = places[:, :, :, half, :, :, pair].transpose((0, 2, 3, 4, 1, 5))
        lower |= (own & 15) << np.uint16(8 * half + 4 * pair)
        for block in range(2):
            upper |= (own[:, :, :, block] >> 4) << np.uint16(8 * half + 4 * block + 2 * pair)
    words[:, :, :4] = lower.reshape((*words.shape[:2], 4, PANEL, 2))
    ordered = scales.reshape(-1, PANEL, scales.shape[1]).transpose(0, 2, 1)
    return words.reshape(-1).view(np.int8), ordered.reshape(-1)
