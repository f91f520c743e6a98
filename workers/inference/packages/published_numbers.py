"""Takes the numbers of a layer in 4 bits out of their words (see `published_layers`)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from shammah.bus.record import record
from shammah.models.published_bits import AWQ, PublishedBits
from workers.inference.packages.published_layers import IN_A_WORD

_IN_ORDER = tuple(range(IN_A_WORD))
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which channel of eight each part of a word belongs to."""
_ONES = np.uint32(0x11111111)


@record
class PublishedWeights:
    """What the tensors of a layer hold, as they are stored."""

    bits: PublishedBits
    words: NDArray[np.int32]
    zeros: NDArray[np.int32]
    scales: NDArray[np.float32]

    def channels(
        self, begin: int, end: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
        """Numbers (channels, inputs), zero points and scales (channels, groups).

        The channels are those from ``begin``, a multiple of 8, to ``end`` or the last.
        """
        scales = np.ascontiguousarray(self.scales[:, begin:end].T)
        end = begin + len(scales)
        order = _AWQ_ORDER if self.bits.format == AWQ else _IN_ORDER
        zeros = self.zeros.view(np.uint32) + np.uint32(self.bits.zero_offset) * _ONES
        if self.bits.format == AWQ:
            numbers = _along_channels(self.words.view(np.uint32), order, begin, end)
        else:
            some = np.ascontiguousarray(self.words[:, begin:end].T).view(np.uint32)
            numbers = np.stack([_part(some, place) for place in _IN_ORDER], axis=-1)
            numbers = numbers.reshape(len(scales), -1)
        return numbers, _along_channels(zeros, order, begin, end), scales


def _along_channels(
    words: NDArray[np.uint32], order: tuple[int, ...], begin: int, end: int
) -> NDArray[np.uint8]:
    """Transposed: (channels, rows)."""
    some = np.ascontiguousarray(words[:, begin // IN_A_WORD : math.ceil(end / IN_A_WORD)].T)
    found = np.empty((len(some), IN_A_WORD, some.shape[1]), np.uint8)
    for place, channel in enumerate(order):
        found[:, channel] = _part(some, place)
    return found.reshape(-1, some.shape[1])[: end - begin]


def _part(words: NDArray[np.uint32], place: int) -> NDArray[np.uint8]:
    return (words >> np.uint32(4 * place) & np.uint32(15)).astype(np.uint8)
