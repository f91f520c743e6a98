"""The runner that serves every architecture and device, through transformers.

The reference for every other: it computes what ``model.generate`` computes.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from shammah.errors import ShammahError
from shammah.settings.load import home_directory
from workers.environment import prepare_libraries
from workers.inference.engine import EngineFacts, LoadObserver, LoadSettings
from workers.inference.engines.transformers.spec import place
from workers.inference.packages.adapter_file import Adapter
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.runner import Logits, RunnerLimits

if TYPE_CHECKING:
    import torch

    from workers.inference.engines.transformers.kv_slots import KVSlots, LayerShape, SlotCache
    from workers.inference.engines.transformers.module_adapters import ModuleAdapters

log = logging.getLogger(__name__)

LIMITS = {
    "cpu": RunnerLimits(batch=8, chunk=256, shared_chunk=64),
    "mps": RunnerLimits(batch=8, chunk=1024, shared_chunk=256, lazy=False),
    "cuda": RunnerLimits(batch=16, chunk=2048, shared_chunk=512, lazy=False),
}

_WARM_UP = 8

_BROKEN = -1
"""In the place of the number of tokens that a cache holds: nobody knows."""


class TransformersRunner:
    """See `workers.inference.runner.Runner`."""

    engine = "transformers"
    stages = ("import torch", "import transformers", "read weights", "warm up")

    def __init__(self) -> None:
        self.limits = LIMITS["cpu"]
        self.model: Any = None
        """The module that computes; some of its layers may be quantised."""
        self._device = "cpu"
        self._options: dict[str, Any] = {}
        self._memory: _SlotMemory | _OwnCaches
        self._adapters: ModuleAdapters

    # --- loading --------------------------------------------------------------------------

    def prepare(self) -> None:
        prepare_libraries()
        import transformers.modeling_utils  # noqa: F401

        import workers.inference.engines.transformers.weights  # noqa: F401 - torch comes with it

    def load(
        self, checkpoint: Checkpoint, settings: LoadSettings, observer: LoadObserver
    ) -> EngineFacts:
        prepare_libraries()
        observer.stage("import torch")
        from workers.inference.engines.transformers.placement import limit_threads

        form = place(checkpoint, settings)
        self._device = form.device
        self.limits = LIMITS[self._device]
        threads = limit_threads()
        observer.stage("import transformers")
        from workers.inference.engines.transformers import weights
        from workers.model_classes import find_class

        model_class = find_class(
            checkpoint.directory, checkpoint.model_type, checkpoint.architecture
        )
        observer.stage("read weights")
        self.model, note = weights.read_weights(
            model_class, checkpoint, form, observer, settings.home or home_directory(os.environ)
        )
        from workers.inference.engines.transformers.module_adapters import ModuleAdapters

        self._adapters = ModuleAdapters(self.model, self._device)
        if "logits_to_keep" in inspect.signature(model_class.forward).parameters:
            self._options["logits_to_keep"] = 1
        observer.stage("warm up")
        self._warm_up()
        log.info("%s as %s, %d threads", model_class.__name__, form, threads)
        facts = EngineFacts(self.engine, self._device, form.dtype, form.quantization)
        return replace(facts, why=form.why, note=note)

    def _warm_up(self) -> None:
        """Compute something once: first calls allocate, choose kernels and start threads.

        What its cache looks like then tells how this architecture remembers.
        """
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        cache = DynamicCache(config=self.model.config)
        self._forward([list(range(_WARM_UP))], cache)
        logits = self._forward([[0]], cache)
        if not np.isfinite(logits).all():
            self._explain_nonsense(logits)
        if all(type(layer) is DynamicLayer for layer in cache.layers):
            self._memory = _SlotMemory(cache)
        else:
            # Windows and recurrent states: nothing of it can be shared or taken back.
            log.info("%s has a cache of its own kind", type(self.model).__name__)
            self._memory = _OwnCaches(self.model.config, cache)
            self.limits = RunnerLimits(
                self.limits.batch, self.limits.chunk, self.limits.shared_chunk, reuses=False
            )

    def _explain_nonsense(self, logits: Logits) -> None:
        """Only now: reading all weights takes longer than to compute a token with them.

        Raises:
            ShammahError: ``model_corrupt`` or ``model_unsupported``.
        """
        from workers.model_classes import check_finite

        check_finite(self.model)
        if not np.isfinite(logits.max()):  # minus infinity: a token that is never to be chosen
            raise ShammahError(
                "model_unsupported",
                f"The model computes NaN or infinite numbers in {self.model.dtype}.",
                "Set inference.dtype to float32.",
            )

    def kv_bytes_per_token(self) -> int:
        return max(1, self._memory.bytes_per_token)

    def free_bytes(self) -> int:
        from workers.inference.engines.transformers import placement

        return placement.free_memory(self._device)

    def reserve(self, slots: int, capacity: int) -> None:
        self._memory.reserve(slots, capacity)

    def release(self, slot: int) -> None:
        self._memory.release(slot)

    def copy(self, source: int, target: int, length: int) -> None:
        self._memory.copy(source, target, length)

    # --- adapters -------------------------------------------------------------------------

    def add_adapter(self, adapter: Adapter) -> int:
        return self._adapters.add(adapter)

    def drop_adapter(self, key: str) -> None:
        self._adapters.drop(key)

    # --- computing ------------------------------------------------------------------------

    def prefill(self, slot: int, start: int, tokens: Sequence[int], adapter: str = "") -> Logits:
        with self._adapters.using(adapter):
            return self._memory.prefill(self._forward, slot, start, tokens)

    def decode(
        self,
        slots: Sequence[int],
        positions: Sequence[int],
        tokens: Sequence[int],
        adapters: Sequence[str] = (),
    ) -> Logits:
        """A pass for each adapter, and one for the rows without: a layer is not told of rows."""
        keys = list(adapters) or [""] * len(slots)
        found: dict[int, Logits] = {}
        for key in dict.fromkeys(keys):
            rows = [row for row, own in enumerate(keys) if own == key]
            some = [[every[row] for row in rows] for every in (slots, positions, tokens)]
            with self._adapters.using(key):
                logits = self._memory.decode(self._forward, *some)
            if len(rows) == len(keys):
                return logits
            found |= zip(rows, logits, strict=True)
        return np.stack([found[row] for row in range(len(keys))])

    def _forward(
        self,
        rows: Sequence[Sequence[int]],
        cache: Any,
        starts: Sequence[int] | None = None,
    ) -> Logits:
        """Append ``rows`` of equally many tokens to ``cache``; the logits after each row.

        Args:
            rows: token ids.
            cache: of transformers' kind.
            starts: the position of each row's first token; ``None``: the cache knows.
        """
        import torch

        with torch.inference_mode():
            ids = torch.tensor(rows, device=self._device)
            options = dict(self._options)
            if starts is not None:
                first = torch.tensor(starts, device=self._device)
                positions = first[:, None] + torch.arange(ids.shape[1], device=self._device)
                options["position_ids"] = positions
                options["attention_mask"] = _mask(positions, self.model.dtype)
            output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, **options)
            logits: Logits = output.logits[:, -1].float().cpu().numpy()
            return logits


class _SlotMemory:
    """For architectures whose every layer attends to everything: one pass for many sequences."""

    def __init__(self, sample: Any) -> None:
        """``sample``: a cache of `DynamicLayer` that holds something."""
        first = sample.layers[0].keys
        self._dtype: torch.dtype = first.dtype
        self._device = first.device.type
        self._shapes: list[LayerShape] = [
            (
                (layer.keys.shape[1], layer.keys.shape[3]),
                (layer.values.shape[1], layer.values.shape[3]),
            )
            for layer in sample.layers
        ]
        numbers = sum(heads * size for pair in self._shapes for heads, size in pair)
        self.bytes_per_token: int = numbers * self._dtype.itemsize
        self._kv: KVSlots
        self._cache: SlotCache

    def reserve(self, slots: int, capacity: int) -> None:
        from workers.inference.engines.transformers.kv_slots import KVSlots, SlotCache

        self._kv = KVSlots(self._shapes, slots, capacity, self._dtype, self._device)
        self._cache = SlotCache(self._kv, len(self._shapes))

    def release(self, slot: int) -> None:
        self._kv.release(slot)

    def copy(self, source: int, target: int, length: int) -> None:
        self._kv.copy(source, target, length)

    def prefill(self, forward: Any, slot: int, start: int, tokens: Sequence[int]) -> Logits:
        self._kv.slots, self._kv.starts = (slot,), (start,)
        logits: Logits = forward([tokens], self._cache, (start,))[0]
        return logits

    def decode(
        self, forward: Any, slots: Sequence[int], positions: Sequence[int], tokens: Sequence[int]
    ) -> Logits:
        self._kv.slots, self._kv.starts = slots, positions
        logits: Logits = forward([[token] for token in tokens], self._cache, positions)
        return logits


class _OwnCaches:
    """For all others: a cache of the model's own kind for each sequence, one pass for each."""

    def __init__(self, config: Any, sample: Any) -> None:
        self._config = config
        self._caches: list[Any] = []
        self._held: list[int] = []
        held = (
            getattr(layer, name, None) for layer in sample.layers for name in ("keys", "values")
        )
        tensors = [tensor for tensor in held if tensor is not None]
        self.bytes_per_token: int = sum(
            tensor.numel() * tensor.element_size() // tensor.shape[-2] for tensor in tensors
        )

    def reserve(self, slots: int, capacity: int) -> None:
        self._caches = [None] * slots
        self._held = [0] * slots
        self._logits: list[Logits | None] = [None] * slots

    def release(self, slot: int) -> None:
        self._caches[slot] = self._logits[slot] = None

    def copy(self, source: int, target: int, length: int) -> None:
        raise AssertionError("nothing is reused here")

    def prefill(self, forward: Any, slot: int, start: int, tokens: Sequence[int]) -> Logits:
        if start == 0:
            from transformers import DynamicCache

            self._caches[slot] = DynamicCache(config=self._config)
            self._held[slot] = 0
        return self._append(forward, slot, start, tokens)

    def decode(
        self, forward: Any, slots: Sequence[int], positions: Sequence[int], tokens: Sequence[int]
    ) -> Logits:
        return np.stack(
            [
                self._append(forward, slot, position, [token])
                for slot, position, token in zip(slots, positions, tokens, strict=True)
            ]
        )

    def _append(self, forward: Any, slot: int, start: int, tokens: Sequence[int]) -> Logits:
        """The logits after ``tokens``, which begin at ``start``.

        Nothing can be taken back: what a batch had done before another row of it failed is
        remembered, and where a pass broke off the cache is not used again.
        """
        known, held = self._logits[slot], self._held[slot]
        if known is not None and held == start + len(tokens):
            return known
        if held != start:
            raise RuntimeError(f"the cache holds {held} tokens, and the next is number {start}")
        self._held[slot], self._logits[slot] = _BROKEN, None
        logits: Logits = forward([tokens], self._caches[slot])[0]
        self._held[slot], self._logits[slot] = start + len(tokens), logits
        return logits


def _mask(positions: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive, (rows, 1, new, longest): each token sees those up to its own position.

    Given ready-made, transformers takes it as it is, with every implementation of attention.
    """
    import torch

    keys = torch.arange(int(positions.max()) + 1, device=positions.device)
    hidden = keys[None, None, None, :] > positions[:, None, :, None]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill(hidden, torch.finfo(dtype).min)
