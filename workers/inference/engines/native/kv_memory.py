"""The memory in which keys and values lie: slot after slot, taken from the system as it is used."""

from __future__ import annotations

import math
import mmap
import sys

import numpy as np
from numpy.typing import NDArray

from workers.inference.engines.native.architecture import Architecture
from workers.inference.engines.native.layout import LANES, padded
from workers.inference.engines.native.operands import Cache

_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0
"""Let there be more than the machine has, since most of it is never used."""


class KVMemory:
    """Room for ``slots`` sequences of ``capacity`` tokens."""

    def __init__(self, architecture: Architecture, slots: int, capacity: int) -> None:
        a = architecture
        positions, size = padded(capacity, LANES), padded(a.head_size, LANES)
        heads = (slots, a.layers, a.kv_heads)
        self.slots, self.capacity = slots, capacity
        self._keys, keys = _allocate(*heads, positions // LANES, a.head_size, LANES)
        self._values, values = _allocate(*heads, size // LANES, positions, LANES)
        self.cache = Cache(keys, values)

    def release(self, slot: int) -> None:
        """Give the memory of a slot back to the system."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        for memory in (self._keys, self._values):
            size = len(memory) // self.slots
            first = padded(slot * size, mmap.PAGESIZE)
            end = (slot + 1) * size // mmap.PAGESIZE * mmap.PAGESIZE
            if first < end:
                memory.madvise(mmap.MADV_DONTNEED, first, end - first)

    def copy(self, source: int, target: int, length: int) -> None:
        """Have the first ``length`` positions of ``source`` in ``target``, too."""
        keys, values = self.cache
        blocks = padded(length, LANES) // LANES
        keys[target, :, :, :blocks] = keys[source, :, :, :blocks]
        values[target, :, :, :, :length] = values[source, :, :, :, :length]

    def dump(self, slot: int, start: int, count: int) -> bytes:
        """What a slot holds of ``count`` positions from ``start``, which is a multiple of `LANES`:
        keys (layers, heads, blocks, head, `LANES`), then values (layers, heads, blocks, positions,
        `LANES`)."""
        first, end = start // LANES, padded(start + count, LANES) // LANES
        keys = self.cache.keys[slot, :, :, first:end].copy()
        if count % LANES:  # what lies there may be of another conversation
            keys[:, :, -1, :, count % LANES :] = 0
        values = self.cache.values[slot, :, :, :, start : start + count]
        return keys.tobytes() + values.tobytes()

    def load(self, slot: int, start: int, count: int, data: bytes) -> None:
        """Undo `dump`, as far as a slot has room."""
        keys, values = self.cache.keys[slot], self.cache.values[slot]
        blocks, first = padded(count, LANES) // LANES, start // LANES
        shape = (*keys.shape[:2], blocks, *keys.shape[3:])
        cut = math.prod(shape)
        numbers = np.frombuffer(data, np.uint16)
        target = keys[:, :, first : first + blocks]
        target[:] = numbers[:cut].reshape(shape)[:, :, : target.shape[2]]
        target = values[:, :, :, start : start + count]
        shape = (*values.shape[:3], count, values.shape[4])
        target[:] = numbers[cut:].reshape(shape)[:, :, :, : target.shape[3]]


def bytes_per_token(architecture: Architecture) -> int:
    """What a position of a slot takes."""
    a = architecture
    return 2 * a.layers * a.kv_heads * (a.head_size + padded(a.head_size, LANES))


def _allocate(*shape: int) -> tuple[mmap.mmap, NDArray[np.uint16]]:
    """Zeros that take no memory until something else is written."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    try:
        memory = mmap.mmap(-1, 2 * math.prod(shape), flags=flags)
    except OSError as error:
        raise MemoryError(f"not enough memory for keys and values ({error.strerror})") from error
    return memory, np.frombuffer(memory, np.uint16).reshape(shape)
