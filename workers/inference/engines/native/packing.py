"""Rounds matrices to 8 bits and puts them in order; `layout` says how."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.inference.engines.native.compiler import compiled, entry
from workers.inference.engines.native.lanes import (
    bits_of_float,
    float_of_bits,
    larger,
    largest_of,
    load_floats,
    magnitudes,
    no_floats,
    store_rounded,
)
from workers.inference.engines.native.layout import GROUP, LANES, PANEL, packed_sizes, padded

_LARGEST = np.float32(127)
_PAIRS = GROUP // 2


def pack(matrix: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    """The packed weights and scales of a matrix of (channels, inputs), both flat."""
    sizes = packed_sizes(*matrix.shape)
    weights, scales = np.zeros(sizes[0], np.int8), np.zeros(sizes[1], np.uint16)
    _pack(matrix, weights, scales, np.zeros(GROUP, np.float32), np.zeros(GROUP, np.int16))
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


@compiled
def _rounded_up(value: np.float32) -> np.int32:
    """The upper half of the bits of the least bfloat16 that is not below ``value`` (>= 0)."""
    bits: np.int32 = (bits_of_float(value) + np.int32(0xFFFF)) >> np.int32(16)
    return bits


@entry
def _pack(
    matrix: NDArray[np.float32],
    weights: NDArray[np.int8],
    scales: NDArray[np.uint16],
    values: NDArray[np.float32],
    whole: NDArray[np.int16],
) -> None:
    """``values`` and ``whole`` are scratch for one group."""
    channels, inputs = matrix.shape
    groups = (inputs + GROUP - 1) // GROUP
    for channel in range(channels):
        panel, lane = channel // PANEL, channel % PANEL
        for group in range(groups):
            first = group * GROUP
            for k in range(GROUP):
                values[k] = matrix[channel, first + k] if first + k < inputs else 0
            largest = no_floats()
            for k in range(0, GROUP, LANES):
                largest = larger(largest, magnitudes(load_floats(values, k)))
            bits = _rounded_up(largest_of(largest) / _LARGEST)
            block = panel * groups + group
            scales[block * PANEL + lane] = bits
            scale = float_of_bits(np.int32(bits) << np.int32(16))
            factor = 1 / scale if scale > 0 else np.float32(0)
            for k in range(0, GROUP, LANES):
                store_rounded(whole, k, load_floats(values, k), factor)
            at = block * GROUP * PANEL + 2 * lane
            for pair in range(_PAIRS):
                weights[at] = whole[2 * pair]
                weights[at + 1] = whole[2 * pair + 1]
                at += 2 * PANEL
