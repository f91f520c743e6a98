"""The adapters of a model of the native runner, as `adaptation` wants them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shammah.bus.record import record
from workers.inference.engines.native.architecture import Architecture
from workers.inference.engines.native.layout import GROUP, PANEL, padded
from workers.inference.engines.native.operands import RANKS, SHARING, TARGETS, Adapters
from workers.inference.packages.adapter_file import Adapter, LowRank, unsupported, wrong_base

_MODULE = re.compile(r"model\.layers\.(\d+)\.(?:self_attn\.([qkvo])|mlp\.(gate|up|down))_proj")


@record
class _Packed:
    """``table`` (layers, targets, 3) points into ``arrays``; ``rank`` is the highest."""

    table: NDArray[np.int64]
    arrays: list[NDArray[np.float32]]
    rank: int


class HeldAdapters:
    """Those of one model, by their keys."""

    def __init__(self, architecture: Architecture) -> None:
        a = architecture
        q, kv = a.heads * a.head_size, a.kv_heads * a.head_size
        hidden, wide = a.hidden, a.intermediate
        self._layers = a.layers
        attention = ((hidden, q), (hidden, kv), (hidden, kv), (q, hidden))
        feed_forward = ((hidden, wide), (hidden, wide), (wide, hidden))
        self._sizes = dict(zip(TARGETS, attention + feed_forward, strict=True))
        panels = [padded(outputs, PANEL) // PANEL for _, outputs in self._sizes.values()]
        places = [0, padded(q, PANEL), 0, 0, 0, padded(wide, GROUP), 0]
        self._panels, self._places = np.array(panels, np.int64), np.array(places, np.int64)
        self._held: dict[str, _Packed] = {}
        self._low = np.zeros((0, 0), np.float32)
        self.none = self._step(False, np.zeros(0, np.int64), np.zeros((0, 0, 0, 0), np.int64))
        """For steps without."""

    def add(self, adapter: Adapter) -> int:
        """Pack one; the bytes that it takes.

        Raises:
            ShammahError: ``adapter_unsupported`` or ``adapter_wrong_base``.
        """
        table = np.zeros((self._layers, len(TARGETS), 3), np.int64)
        arrays = list[NDArray[np.float32]]()
        for module, low_rank in adapter.layers.items():
            layer, target = self._place(adapter, module)
            a, b = _pack(low_rank)
            arrays += [a, b]
            table[layer, TARGETS.index(target)] = a.ctypes.data, b.ctypes.data, low_rank.rank
        rank = max(one.rank for one in adapter.layers.values())
        self._held[adapter.key] = _Packed(table, arrays, rank)
        return sum(array.nbytes for array in arrays)

    def drop(self, key: str) -> None:
        del self._held[key]

    def of_rows(self, keys: Sequence[str]) -> Adapters:
        """The adapter of each row (empty for none), for a step."""
        distinct = [key for key in dict.fromkeys(keys) if key]
        if not distinct:
            return self.none
        numbers = {key: number for number, key in enumerate(distinct)} | {"": -1}
        held = [self._held[key] for key in distinct]
        width = SHARING * padded(max(one.rank for one in held), RANKS)
        if self._low.shape[0] < len(keys) or self._low.shape[1] != width:
            self._low = np.zeros((len(keys), width), np.float32)
        of_row = np.array([numbers[key] for key in keys], np.int64)
        return self._step(True, of_row, np.stack([one.table for one in held]))

    def _step(self, used: bool, of_row: NDArray[np.int64], table: NDArray[np.int64]) -> Adapters:
        return Adapters(
            used, of_row, table=table, panels=self._panels, places=self._places, low=self._low
        )

    def _place(self, adapter: Adapter, module: str) -> tuple[int, str]:
        """The layer and the target of a module."""
        match = _MODULE.fullmatch(module)
        if match is None:
            why = f"the native engine cannot adapt {module} (the transformers engine may)"
            raise unsupported(adapter.name, why)
        layer, target = int(match[1]), match[2] or match[3]
        if layer >= self._layers:
            why = f"it adapts {module}, but this model has {self._layers} layers"
            raise wrong_base(adapter.name, why)
        adapter.check_sizes(module, *self._sizes[target])
        return layer, target


def _pack(low_rank: LowRank) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A and B in the order that `adaptation` describes."""
    rank, inputs = low_rank.down.shape
    a = np.zeros((padded(rank, RANKS), padded(inputs, GROUP)), np.float32)
    a[:rank, :inputs] = low_rank.down
    outputs = low_rank.up.shape[0]
    filled = np.zeros((padded(outputs, PANEL), rank), np.float32)
    filled[:outputs] = low_rank.up
    b = np.ascontiguousarray(filled.reshape(-1, PANEL, rank).transpose(0, 2, 1))
    return a, b
