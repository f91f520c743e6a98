"""Keys and values of several sequences, for mlx-lm's models.

The rows of one pass lie together in one array for as long as the same sequences are computed
together, and each writes where it goes on. When others are, rows are taken apart and joined again,
which copies them. (mlx-lm's own batches are padded in front, so that all rows end together.)

An mlx array is a value: what is assigned to a part of it is written in place only where nobody else
holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

_STEP = 256
"""Tokens by which the room for a sequence grows."""

_KEYS, _VALUES = 0, 1


@dataclass(eq=False, slots=True)
class _Layer:
    """What the model takes as the cache of a layer; each array: (rows, heads, room, size)."""

    starts: list[int]
    """The positions of the rows' first new tokens in this pass; the same for all layers."""
    keys: mx.array
    values: mx.array

    @property
    def offset(self) -> int | mx.array:
        """The position of each row's first new token."""
        starts = self.starts
        return starts[0] if len(starts) == 1 else mx.array(starts)

    @property
    def state(self) -> tuple[mx.array, mx.array]:
        return self.keys, self.values

    def make_mask(
        self, n: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """Each of ``n`` new tokens sees those up to its own position: (rows, 1, n, longest)."""
        starts = self.starts
        if len(starts) == 1 and window_size is None and not return_array:
            return None if n == 1 else "causal"
        positions = mx.array(starts)[:, None, None, None] + mx.arange(n)[:, None]
        keys = mx.arange(max(starts) + n)
        seen = keys <= positions
        return seen if window_size is None else seen & (keys > positions - window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write (rows, heads, new, size) where the rows go on.

        Returns:
            The keys and the values of all tokens so far, (rows, heads, longest, size). What lies
            beyond a shorter row's end is for the mask to hide.
        """
        longest = max(self.starts) + keys.shape[2]
        self.keys = self._write(self.keys, keys, longest)
        self.values = self._write(self.values, values, longest)
        return self.keys[:, :, :longest], self.values[:, :, :longest]

    def _write(self, held: mx.array, new: mx.array, longest: int) -> mx.array:
        starts = self.starts
        rows, heads, room, size = held.shape
        if room < longest:
            more = -(-longest // _STEP) * _STEP - room
            held = mx.concatenate([held, mx.zeros((rows, heads, more, size), held.dtype)], axis=2)
        if rows == 1:
            held[:, :, starts[0] : longest] = new
        else:
            places = mx.array(starts)[:, None] + mx.arange(new.shape[2])
            held[mx.arange(rows)[:, None], :, places] = new.transpose(0, 2, 1, 3)
        return held


@dataclass(eq=False, slots=True)
class _Rows:
    """Slots whose keys and values lie together, one row each."""

    slots: tuple[int, ...]
    starts: list[int] = field(default_factory=list)
    layers: list[_Layer] = field(default_factory=list)

    def add(self, keys: mx.array, values: mx.array) -> _Layer:
        """Add a layer."""
        self.layers.append(_Layer(self.starts, keys, values))
        return self.layers[-1]


class KVSlots:
    """For models whose every layer attends to everything.

    Args:
        sample: mlx-lm's caches of all layers, which hold something.

    Attributes:
        bytes_per_token: of all layers.
    """

    def __init__(self, sample: Sequence[Any]) -> None:
        self._shapes = [
            [(each.shape[1], each.shape[3], each.dtype) for each in (layer.keys, layer.values)]
            for layer in sample
        ]
        self.bytes_per_token: int = sum(
            heads * size * dtype.size for both in self._shapes for heads, size, dtype in both
        )
        self._rows: list[_Rows | None] = []

    def reserve(self, slots: int) -> None:
        self._rows = [None] * slots

    def release(self, slot: int) -> None:
        self._separate(slot)
        self._rows[slot] = None

    def copy(self, source: int, target: int, length: int) -> None:
        self.release(target)
        self._separate(source)
        copied = self._rows[target] = self._join((target,), (source,), (length,))
        mx.eval([layer.state for layer in copied.layers])

    def lose(self, slots: Sequence[int]) -> None:
        """A pass broke off: what these slots hold is unknown."""
        for slot in slots:
            self._rows[slot] = None

    def caches(self, slots: Sequence[int], starts: Sequence[int]) -> list[_Layer]:
        """Return what the model takes for a pass that goes on with ``slots`` at ``starts``.

        Raises:
            RuntimeError: a pass broke off before (`lose`).
        """
        wanted = tuple(slots)
        rows = self._rows[wanted[0]]
        if rows is None or rows.slots != wanted:
            for slot in wanted:
                self._separate(slot)
            alone = self._rows[wanted[0]] if len(wanted) == 1 else None
            rows = alone or self._join(wanted, wanted, starts)
            for slot in wanted:
                self._rows[slot] = rows
        rows.starts[:] = starts
        return rows.layers

    def _separate(self, slot: int) -> None:
        """Have each of the slots that lie with this one by itself; layer by layer, so that only one
        is there twice."""
        together = self._rows[slot]
        if together is None or len(together.slots) == 1:
            return
        alone = [_Rows((own,)) for own in together.slots]
        for rows in alone:
            self._rows[rows.slots[0]] = rows
        while together.layers:
            layer = together.layers.pop(0)
            for row, rows in enumerate(alone):
                mx.eval(rows.add(_copy(layer.keys, row), _copy(layer.values, row)).state)

    def _join(
        self, slots: tuple[int, ...], sources: Sequence[int], lengths: Sequence[int]
    ) -> _Rows:
        """Put the first tokens of each of ``sources`` together, as rows of ``slots``."""
        joined = _Rows(slots)
        room = (max(lengths) // _STEP + 1) * _STEP

        def join(layer: int, which: int) -> mx.array:
            beginnings = [
                self._beginning(source, length, room, layer=layer, which=which)
                for source, length in zip(sources, lengths, strict=True)
            ]
            return mx.concatenate(beginnings)

        for layer in range(len(self._shapes)):
            joined.add(join(layer, _KEYS), join(layer, _VALUES))
        return joined

    def _beginning(
        self, source: int, length: int, room: int, *, layer: int, which: int
    ) -> mx.array:
        """Return the keys or the values of the first tokens: (1, heads, room, size)."""
        heads, size, dtype = self._shapes[layer][which]
        rows = self._rows[source]
        if rows is not None:
            held = rows.layers[layer].state[which][:, :, :length]
            return mx.pad(held, [(0, 0), (0, 0), (0, room - length), (0, 0)])
        if length:
            raise RuntimeError(f"the keys and values of slot {source} are lost")
        return mx.zeros((1, heads, room, size), dtype)


def _copy(array: mx.array, row: int) -> mx.array:
    """A row by itself. A slice alone would keep the memory of all rows."""
    return array[row : row + 1] * 1
