"""Adapters for a model of mlx-lm's: layers around its linear layers add what adapters compute.

A layer that no adapter changes stays as it is, and one around it adds nothing while no adapter is
in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from workers.inference.packages.adapter_file import Adapter, LowRank, unsupported, wrong_base


class AdaptedLayer(nn.Module):  # type: ignore[misc]
    """A linear layer, and what the adapter in use adds to it: ``y += up (down x)``, in float32.

    Args:
        inner: the layer.
        used: the key of the adapter in use; empty: none.
    """

    def __init__(self, inner: Any, used: Callable[[], str]) -> None:
        super().__init__()
        self.inner = inner
        self._used = used
        self._matrices: dict[str, tuple[mx.array, mx.array]] = {}

    def add(self, key: str, low_rank: LowRank) -> None:
        """Have an adapter's matrices."""
        both = (mx.array(low_rank.down), mx.array(low_rank.up))
        mx.eval(both)
        self._matrices[key] = both

    def drop(self, key: str) -> None:
        """Have no matrices of an adapter."""
        self._matrices.pop(key, None)

    def __call__(self, x: mx.array) -> mx.array:
        output: mx.array = self.inner(x)
        matrices = self._matrices.get(self._used())
        if matrices is None:
            return output
        down, up = matrices
        added = x.astype(mx.float32) @ down.T @ up.T
        return (output.astype(mx.float32) + added).astype(output.dtype)


class ModelAdapters:
    """The adapters of one model, by their keys."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._layers: dict[str, AdaptedLayer] = {}
        self._used = ""

    def add(self, adapter: Adapter) -> int:
        """Have an adapter; the bytes that it takes.

        Raises:
            ShammahError: ``adapter_unsupported`` or ``adapter_wrong_base``.
        """
        modules = dict(self._model.named_modules())
        found = {name: self._find(modules, adapter, name) for name in adapter.layers}
        for name, layer in found.items():
            if name not in self._layers:
                self._layers[name] = layer
                self._model.update_modules(tree_unflatten([(name, layer)]))
            layer.add(adapter.key, adapter.layers[name])
        return adapter.bytes

    def drop(self, key: str) -> None:
        for layer in self._layers.values():
            layer.drop(key)

    @contextmanager
    def using(self, key: str) -> Iterator[None]:
        """What the model computes meanwhile is computed with this adapter; empty: without."""
        self._used = key
        try:
            yield
        finally:
            self._used = ""

    def _find(self, modules: dict[str, Any], adapter: Adapter, name: str) -> AdaptedLayer:
        module = modules.get(name)
        if module is None:
            raise wrong_base(adapter.name, f"it adapts {name}, which this model lacks")
        layer = module if isinstance(module, AdaptedLayer) else None
        inner = layer.inner if layer is not None else module
        if not isinstance(inner, nn.Linear | nn.QuantizedLinear):
            kind = type(inner).__name__
            raise unsupported(adapter.name, f"it adapts {name}, which is not linear ({kind})")
        outputs, inputs = inner.weight.shape
        if isinstance(inner, nn.QuantizedLinear):
            inputs = inputs * 32 // inner.bits
        adapter.check_sizes(name, inputs, outputs)
        return layer or AdaptedLayer(inner, lambda: self._used)
