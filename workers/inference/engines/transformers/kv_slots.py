"""Keys and values of several sequences for transformers' models, in slots of fixed places.

transformers' own caches belong to one batch that begins and ends together, and `DynamicCache`
copies everything it holds for each new token. Here a sequence's keys and values are written
once, where they stay; which sequences a forward pass computes is said before it.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

LayerShape = tuple[tuple[int, int], tuple[int, int]]
"""Heads and their size: of the keys, of the values."""


class KVSlots:
    """Room for ``count`` sequences of ``capacity`` tokens.

    Attributes:
        slots, starts: the rows of the forward pass in hand, and where each goes on.
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        count: int,
        capacity: int,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        self.slots: Sequence[int] = ()
        self.starts: Sequence[int] = ()
        self._buffers: list[mmap.mmap] = []
        self.rooms = [self._room(shapes, capacity, dtype, device) for _ in range(count)]

    def release(self, slot: int) -> None:
        """Give the memory of a slot back to the system, where that can be done."""
        if self._buffers and hasattr(mmap, "MADV_DONTNEED"):
            self._buffers[slot].madvise(mmap.MADV_DONTNEED)

    def copy(self, source: int, target: int, length: int) -> None:
        """Have the first ``length`` tokens of ``source`` in ``target``, too."""
        for held, room in zip(self.rooms[source], self.rooms[target], strict=True):
            for one, other in zip(held, room, strict=True):
                other[:, :length] = one[:, :length]

    def _room(
        self, shapes: Sequence[LayerShape], capacity: int, dtype: torch.dtype, device: str
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """One slot: keys and values of each layer, (heads, capacity, size)."""
        sizes = [heads * capacity * size for pair in shapes for heads, size in pair]
        if device == "cpu":
            # Pages that nobody has written take no memory. Private: shared ones, the default,
            # are not given back by `release`.
            buffer = mmap.mmap(
                -1, sum(sizes) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            )
            self._buffers.append(buffer)
            whole = torch.frombuffer(buffer, dtype=dtype)
        else:
            whole = torch.empty(sum(sizes), dtype=dtype, device=device)
        parts = iter(torch.split(whole, sizes))
        return [
            (
                next(parts).view(keys[0], capacity, keys[1]),
                next(parts).view(values[0], capacity, values[1]),
            )
            for keys, values in shapes
        ]


class SlotCache(Cache):
    """What a model's forward pass takes as its cache: the present rows of a `KVSlots`."""

    def __init__(self, kv: KVSlots, layers: int) -> None:
        super().__init__(layers=[SlotLayer(kv, index) for index in range(layers)])


class SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer of it."""

    is_sliding = False

    def __init__(self, kv: KVSlots, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kv = kv
        self._index = index
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (rows, heads, new, size) where the rows go on.

        Returns:
            The keys and the values of all tokens so far, (rows, heads, longest, size). What
            lies beyond a shorter row's end is for the mask to hide.
        """
        new = key_states.shape[2]
        longest = max(self._kv.starts) + new
        both: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for row, (slot, start) in enumerate(zip(self._kv.slots, self._kv.starts, strict=True)):
            room = self._kv.rooms[slot][self._index]
            for held, states, rows in zip(room, (key_states, value_states), both, strict=True):
                held[:, start : start + new] = states[row]
                rows.append(held[:, :longest])
        keys, values = both
        if len(keys) == 1:
            return keys[0].unsqueeze(0), values[0].unsqueeze(0)
        return torch.stack(keys), torch.stack(values)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is lazy here."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return max(self._kv.starts, default=0)

    def get_max_length(self) -> int:
        return -1
