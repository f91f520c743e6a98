"""Keys and values of several sequences, for mlx-lm's models.

Every token of a pass is a row by itself: so the linear layers take the tokens of all sequences
together, as many as each has, and each is rotated to its own position. Attention takes the
sequences one after the other, which mlx-lm's models know nothing of (see `attend_by_sequences`).

An mlx array is a value: what is assigned to a part of it is written in place only where nobody else
holds it.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from workers.inference.runner import Span

_STEP = 256
"""Tokens by which the room for a sequence grows."""

Held = list[mx.array]
"""Keys and values of a slot in a layer; each: (1, heads, room, size)."""


@dataclass(eq=False, slots=True)
class Layer:
    """What the model takes as the cache of a layer.

    Attributes:
        offset: the position of each row's token.
        spans: the sequences' new tokens, in the order of the rows.
        held: of each span's slot.
    """

    offset: mx.array
    spans: Sequence[Span]
    held: list[Held]

    def make_mask(self, n: int, **options: Any) -> None:
        """Of what a row must not see `attend` takes care."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write (rows, heads, 1, size) where the sequences go on; what is returned is not used."""
        at = 0
        for span, held in zip(self.spans, self.held, strict=True):
            end = at + len(span.tokens)
            for which, new in enumerate((keys, values)):
                held[which] = _write(held[which], span.start, new[at:end].transpose(2, 1, 0, 3))
            at = end
        return keys, values

    def attend(self, queries: mx.array, scale: float) -> mx.array:
        """(rows, heads, 1, size): each row sees what is held up to its own position."""
        at, found = 0, []
        for span, (keys, values) in zip(self.spans, self.held, strict=True):
            count = len(span.tokens)
            seen = span.start + count
            attended = mx.fast.scaled_dot_product_attention(
                queries[at : at + count].transpose(2, 1, 0, 3),
                keys[:, :, :seen],
                values[:, :, :seen],
                scale=scale,
                mask="causal" if count > 1 else None,
            )
            found.append(attended.transpose(2, 1, 0, 3))
            at += count
        return mx.concatenate(found)


def attend_by_sequences(library: str) -> None:
    """Have the models of mlx-lm that are imported from now on let a `Layer` attend."""
    base: Any = importlib.import_module(f"{library}.models.base")
    own = base.scaled_dot_product_attention

    def attend(queries: mx.array, *both: mx.array, cache: Any, scale: float, **more: Any) -> Any:
        if isinstance(cache, Layer):
            return cache.attend(queries, scale)
        return own(queries, *both, cache=cache, scale=scale, **more)

    base.scaled_dot_product_attention = attend


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
        self._slots: list[list[Held] | None] = []

    def reserve(self, slots: int) -> None:
        self._slots = [None] * slots

    def release(self, *slots: int) -> None:
        """Nothing that these hold is needed, or known: a pass broke off."""
        for slot in slots:
            self._slots[slot] = None

    def copy(self, source: int, target: int, length: int) -> None:
        room, layers = _room(length + 1), self._layers(source, length)
        more = [(0, 0), (0, 0), (0, room - length), (0, 0)]
        copied = [[mx.pad(one[:, :, :length], more) for one in held] for held in layers]
        mx.eval(copied)
        self._slots[target] = copied

    def layers(self, spans: Sequence[Span]) -> list[Layer]:
        """Return what the model takes for a pass.

        Raises:
            RuntimeError: a pass broke off before (`release`).
        """
        places = [span.start + k for span in spans for k in range(len(span.tokens))]
        slots = [self._layers(span.slot, span.start) for span in spans]
        offset = mx.array(places)
        return [Layer(offset, spans, list(held)) for held in zip(*slots, strict=True)]

    def _layers(self, slot: int, length: int) -> list[Held]:
        """What a slot holds of so many tokens or more."""
        layers = self._slots[slot]
        if layers is None:
            if length:
                raise RuntimeError(f"the keys and values of slot {slot} are lost")
            layers = [
                [mx.zeros((1, heads, _STEP, size), dtype) for heads, size, dtype in both]
                for both in self._shapes
            ]
            self._slots[slot] = layers
        return layers


def _room(length: int) -> int:
    return -(-length // _STEP) * _STEP


def _write(held: mx.array, start: int, new: mx.array) -> mx.array:
    end = start + new.shape[2]
    more = _room(end) - held.shape[2]
    if more > 0:
        _, heads, _, size = held.shape
        held = mx.concatenate([held, mx.zeros((1, heads, more, size), held.dtype)], axis=2)
    held[:, :, start:end] = new
    return held
