"""The kernel that rounds a matrix to 8 bits; `packing` calls it."""

from __future__ import annotations

import numpy as np

from workers.inference.engines.native.compiler import compiled
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
from workers.inference.engines.native.layout import GROUP, LANES, PANEL
from workers.inference.engines.native.operands import Packing

_LARGEST = np.float32(127)
_PAIRS = GROUP // 2


@compiled
def _rounded_up(value: np.float32) -> np.int32:
    """The upper half of the bits of the least bfloat16 that is not below ``value`` (>= 0)."""
    bits: np.int32 = (bits_of_float(value) + np.int32(0xFFFF)) >> np.int32(16)
    return bits


@compiled
def pack_int8(member: int, operands: Packing) -> None:
    """All of a matrix, by one thread."""
    matrix, weights, scales, values, whole = operands
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
