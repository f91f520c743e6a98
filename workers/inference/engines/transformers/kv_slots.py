"""Keys and values of several sequences for transformers' models.

transformers' own caches belong to one batch that begins and ends together, and `DynamicCache`
copies everything it holds for each new token. In `KVSlots` a sequence's keys and values are
written once, where they stay; which sequences a forward pass computes is said before it.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin

from workers.inference.engines.transformers.mixed_attention import (
    Compute,
    Part,
    compute_parts,
    split_row,
)
from workers.inference.runner import Span

_BROKEN = -1
"""The number of tokens that a cache holds, when it is unknown."""


class KVSlots:
    """For architectures whose every layer attends to everything, on a CPU, whose memory is taken
    when it is written: one pass for many sequences.

    Args:
        compute: computes tokens.
        sample: a cache of `DynamicLayer` that holds something.

    Attributes:
        bytes_per_token: of all layers.
        rows: of the forward pass in hand.
        layers: for each slot, keys and values of each layer, (heads, capacity, size).
    """

    def __init__(self, compute: Compute, sample: Any) -> None:
        self._compute = compute
        first = sample.layers[0].keys
        self._dtype: torch.dtype = first.dtype
        self._shapes, self.bytes_per_token = shapes_of(sample)
        self.rows: list[SlotRows] = []
        self.layers: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
        self._buffers: list[mmap.mmap] = []
        self._cache = Cache(layers=[SlotLayer(self, at) for at in range(len(sample.layers))])

    def reserve(self, slots: int, capacity: int) -> None:
        self._buffers = []
        self.layers = [self._allocate(capacity) for _ in range(slots)]

    def release(self, slot: int) -> None:
        """Give the memory of a slot back to the system, where that can be done."""
        if self._buffers and hasattr(mmap, "MADV_DONTNEED"):
            self._buffers[slot].madvise(mmap.MADV_DONTNEED)

    def copy(self, source: int, target: int, length: int) -> None:
        """Have the first ``length`` tokens of ``source`` in ``target``, too."""
        for held, copied in zip(self.layers[source], self.layers[target], strict=True):
            for one, other in zip(held, copied, strict=True):
                other[:, :length] = one[:, :length]

    def compute(self, groups: Sequence[Sequence[Span]]) -> list[torch.Tensor]:
        """The logits of groups of spans, of equal length in each: (spans, wanted, vocabulary)."""
        self.rows, parts = [], []
        for spans in groups:
            starts = [one.start for one in spans]
            tokens = torch.tensor([one.tokens for one in spans])
            positions = torch.tensor(starts)[:, None] + torch.arange(tokens.shape[1])
            self.rows.append(SlotRows(tokens.shape, [one.slot for one in spans], starts))
            mask = causal_mask(positions, max(starts) + tokens.shape[1], self._dtype)
            parts.append(Part(tokens, positions, mask, max(one.wanted for one in spans)))
        return compute_parts(self._compute, self._cache, parts)

    def _allocate(self, capacity: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        sizes = [heads * capacity * size for heads, size in self._shapes]
        # Pages take no memory until they are written. Private: shared ones, the default, are not
        # given back by `release`.
        buffer = mmap.mmap(
            -1, sum(sizes) * self._dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        self._buffers.append(buffer)
        whole = torch.frombuffer(buffer, dtype=self._dtype)
        parts = [
            part.view(heads, capacity, size)
            for part, (heads, size) in zip(torch.split(whole, sizes), self._shapes, strict=True)
        ]
        return list(zip(parts[::2], parts[1::2], strict=True))


@dataclass(frozen=True, slots=True)
class SlotRows:
    """Rows of a pass, of ``shape`` (rows, new): their slots, and where each goes on."""

    shape: torch.Size
    slots: Sequence[int]
    starts: Sequence[int]


class HeldLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """A layer of what the model takes as its cache: the rows in hand of what ``kv`` holds."""

    is_sliding = False

    def __init__(self, kv: Any, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kv = kv
        self._index = index
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is lazy here."""

    def get_max_length(self) -> int:
        return -1

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Write the keys and values of new tokens.

        Returns:
            Those of all tokens so far, as `exchange` does; of a row that is several groups of rows
            (`compute_parts`), a list of each group's.
        """
        groups = self._kv.rows
        if len(groups) == 1:
            return self.exchange(groups[0], key_states, value_states)
        shapes = [rows.shape for rows in groups]
        new = split_row(key_states, shapes), split_row(value_states, shapes)
        found = [self.exchange(*each) for each in zip(groups, *new, strict=True)]
        return [keys for keys, _ in found], [values for _, values in found]

    def exchange(
        self, rows: Any, key_states: torch.Tensor, value_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (rows, heads, new, size) where the rows go on.

        Returns:
            The keys and the values of all tokens so far, (rows, heads, longest, size). What
            lies beyond a shorter row's end is for the mask to hide.
        """
        raise NotImplementedError


class SlotLayer(HeldLayer):  # type: ignore[no-untyped-call]
    """See `HeldLayer`: the present rows of a `KVSlots`."""

    def exchange(
        self, rows: SlotRows, key_states: torch.Tensor, value_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        new = rows.shape[1]
        longest = max(rows.starts) + new
        both: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for row, (slot, start) in enumerate(zip(rows.slots, rows.starts, strict=True)):
            layer = self._kv.layers[slot][self._index]
            for held, states, found in zip(layer, (key_states, value_states), both, strict=True):
                held[:, start : start + new] = states[row]
                found.append(held[:, :longest])
        keys, values = both
        if len(keys) == 1:
            return keys[0].unsqueeze(0), values[0].unsqueeze(0)
        return torch.stack(keys), torch.stack(values)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return max((start for rows in self._kv.rows for start in rows.starts), default=0)


class OwnCaches:
    """For all others: a cache of the model's own kind for each sequence, one pass for each."""

    def __init__(self, compute: Compute, config: Any, sample: Any) -> None:
        self._compute = compute
        self._config = config
        self._caches: list[Any] = []
        self._held: list[int] = []
        held = (
            getattr(layer, name, None) for layer in sample.layers for name in ("keys", "values")
        )
        tensors = [tensor for tensor in held if tensor is not None]
        self._device: torch.device = tensors[0].device
        self.bytes_per_token: int = sum(
            tensor.numel() * tensor.element_size() // tensor.shape[-2] for tensor in tensors
        )

    def reserve(self, slots: int, capacity: int) -> None:
        self._caches = [None] * slots
        self._held = [0] * slots
        self._logits: list[torch.Tensor | None] = [None] * slots

    def release(self, slot: int) -> None:
        self._caches[slot] = self._logits[slot] = None

    def copy(self, source: int, target: int, length: int) -> None:
        raise AssertionError("nothing is reused here")

    def compute(self, groups: Sequence[Sequence[Span]]) -> list[torch.Tensor]:
        """The logits of groups of spans, of equal length in each: (spans, wanted, vocabulary)."""
        return [torch.stack([self._append(span) for span in spans]) for spans in groups]

    def _append(self, span: Span) -> torch.Tensor:
        """The wanted logits of a span.

        Nothing can be taken back: what a batch had done before another row of it failed is
        remembered, and where a pass broke off the cache is not used again.
        """
        slot, start, tokens = span.slot, span.start, span.tokens
        if start == 0:
            self._caches[slot], self._logits[slot] = DynamicCache(config=self._config), None
            self._held[slot] = 0
        known, held = self._logits[slot], self._held[slot]
        if known is not None and held == start + len(tokens):
            return known
        if held != start:
            raise RuntimeError(f"the cache holds {held} tokens, and the next is number {start}")
        self._held[slot], self._logits[slot] = _BROKEN, None
        rows = torch.tensor([tokens], device=self._device)
        found = self._compute(rows, self._caches[slot], max(1, span.wanted))
        logits = found[0, : span.wanted]
        self._held[slot], self._logits[slot] = start + len(tokens), logits
        return logits


def shapes_of(sample: Any) -> tuple[list[tuple[int, int]], int]:
    """Heads and their size in the keys, and in the values, of each layer; bytes of a token in all.

    ``sample``: a cache of `DynamicLayer` that holds something.
    """
    held = [each for layer in sample.layers for each in (layer.keys, layer.values)]
    shapes = [(each.shape[1], each.shape[3]) for each in held]
    numbers = sum(heads * size for heads, size in shapes)
    return shapes, numbers * held[0].dtype.itemsize


def causal_mask(positions: torch.Tensor, length: int, dtype: torch.dtype) -> torch.Tensor:
    """Additive, (rows, 1, new, length): each token sees those up to its own position.

    Given ready-made, transformers takes it as it is, with every implementation of attention.
    ``positions``: of the new tokens, (rows, new). No number of it is looked at here.
    """
    keys = torch.arange(length, device=positions.device)
    hidden = keys[None, None, None, :] > positions[:, None, :, None]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill(hidden, torch.finfo(dtype).min)
