"""Adapters for a transformers model: hooks on its linear layers add what they compute.

The model's modules stay as they are. (peft would put its own in their places; what they compute
without an adapter need not have the same bits.) A layer that no adapter changes has no hook, and
a hook adds nothing while no adapter is in use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from workers.inference.packages.adapter_file import Adapter, unsupported, wrong_base


@dataclass(slots=True)
class _Hooked:
    """A module's hook, and the matrices of every adapter that it has one for, in float32."""

    handle: Any = None
    matrices: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


class ModuleAdapters:
    """The adapters of one model, by their keys.

    Args:
        model: of transformers, loaded.
        device: where it is.
    """

    def __init__(self, model: Any, device: str) -> None:
        self._model = model
        self._device = device
        self._hooked: dict[str, _Hooked] = {}
        self._used = ""

    def add(self, adapter: Adapter) -> int:
        """Have an adapter; the bytes that it takes.

        Raises:
            ShammahError: ``adapter_unsupported`` or ``adapter_wrong_base``.
        """
        modules = {name: self._find(adapter, name) for name in adapter.layers}
        for name, low_rank in adapter.layers.items():
            hooked = self._hooked.setdefault(name, _Hooked())
            both = (torch.from_numpy(one).to(self._device) for one in (low_rank.down, low_rank.up))
            down, up = both
            hooked.matrices[adapter.key] = (down, up)
            if hooked.handle is None:
                hooked.handle = modules[name].register_forward_hook(self._hook(hooked))
        return adapter.bytes

    def drop(self, key: str) -> None:
        """Be without it again."""
        for name, hooked in list(self._hooked.items()):
            hooked.matrices.pop(key, None)
            if not hooked.matrices:
                hooked.handle.remove()
                del self._hooked[name]

    @contextmanager
    def using(self, key: str) -> Iterator[None]:
        """What the model computes meanwhile is computed with this adapter; empty: without."""
        self._used = key
        try:
            yield
        finally:
            self._used = ""

    def _hook(self, hooked: _Hooked) -> Any:
        def add(module: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> Any:
            matrices = hooked.matrices.get(self._used)
            if matrices is None:
                return None
            down, up = matrices
            low = nn.functional.linear(arguments[0].float(), down)
            return (output.float() + nn.functional.linear(low, up)).to(output.dtype)

        return add

    def _find(self, adapter: Adapter, name: str) -> nn.Module:
        try:
            module: nn.Module = self._model.get_submodule(name)
        except AttributeError:
            raise wrong_base(adapter.name, f"it adapts {name}, which this model lacks") from None
        sizes = _sizes(module)
        if sizes is None:
            kind = type(module).__name__
            raise unsupported(adapter.name, f"it adapts {name}, which is not linear ({kind})")
        adapter.check_sizes(name, *sizes)
        return module


def _sizes(module: nn.Module) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer."""
    if isinstance(module, nn.Linear):  # those of bitsandbytes are nn.Linear, too
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    return None
