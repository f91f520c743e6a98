"""Puts weights that were published in 4 bits in order; `layout` says how.

Their numbers and zero points are kept exactly, for a group of theirs is two or four of the
layout's. Their scales, which are float16, are rounded to 255ths of the largest of their channel,
so by at most a 510th of that.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.inference.engines.native.layout import GROUP, INT4_GROUP, PANEL, padded

_LARGEST_NUMBER, _LARGEST_SCALE, _PARTS = 15, np.float32(255), 16


def pack_published(
    numbers: NDArray[np.uint8],
    zeros: NDArray[np.uint8],
    scales: NDArray[np.float32],
    group: int,
) -> tuple[NDArray[np.int8], NDArray[np.uint16], NDArray[np.float32]]:
    """The packed weights, scales and units, all flat, of scales * (numbers - zeros).

    ``numbers`` is (channels, inputs), ``zeros`` and ``scales`` are (channels, groups); ``group``,
    a multiple of 32, is the number of inputs of a group.
    """
    # A scale below zero: -s (q - z) = s ((15 - q) - (15 - z)).
    turned = scales < 0
    if turned.any():
        zeros = np.where(turned, _LARGEST_NUMBER - zeros, zeros)
        wide = turned.repeat(group, 1)[:, : numbers.shape[1]]
        numbers = np.where(wide, _LARGEST_NUMBER - numbers, numbers)
    scales = abs(scales)
    channels, inputs = (padded(n, to) for n, to in zip(numbers.shape, (PANEL, GROUP), strict=True))
    units = np.zeros(channels, np.float32)
    units[: len(scales)] = scales.max(1) / _LARGEST_SCALE
    codes = np.rint(scales / np.where(units > 0, units, 1)[: len(scales), None]).astype(np.uint16)
    codes |= zeros.astype(np.uint16) * _PARTS << 8
    small = np.zeros((channels, inputs // INT4_GROUP), np.uint16)
    every = codes.repeat(group // INT4_GROUP, 1)[:, : small.shape[1]]
    small[: len(every), : every.shape[1]] = every
    words = _interleave(numbers, channels, inputs)
    ordered = small.reshape(-1, PANEL, small.shape[1]).transpose(0, 2, 1)
    return words.view(np.int8), ordered.reshape(-1), units


def _interleave(numbers: NDArray[np.uint8], channels: int, inputs: int) -> NDArray[np.uint16]:
    whole = np.zeros((channels, inputs), np.uint8)
    whole[: numbers.shape[0], : numbers.shape[1]] = numbers
    # Of an input within its group: the half, the block, the pair and the place in it.
    places = whole.reshape((-1, PANEL, inputs // INT4_GROUP, 2, INT4_GROUP // 8, 2, 2))
    nibbles = places.transpose((3, 5, 0, 2, 4, 1, 6))
    words: NDArray[np.uint16] = nibbles[0, 0].astype(np.uint16, order="C")
    for half, pair in ((0, 1), (1, 0), (1, 1)):
        words |= nibbles[half, pair].astype(np.uint16) << np.uint16(8 * half + 4 * pair)
    return words.reshape(-1)
