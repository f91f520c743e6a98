"""The runner that serves every architecture and device, through transformers.

The reference for every other: it computes what ``model.generate`` computes.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from workers.environment import prepare_libraries
from workers.inference.engine import EngineFacts, LoadObserver, LoadSettings
from workers.inference.engines.transformers.spec import place
from workers.inference.memory import kv_budget
from workers.inference.packages.adapter_file import Adapter
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.runner import (
    Candidates,
    Logits,
    Rows,
    RunnerLimits,
    Span,
    check_logits,
)

if TYPE_CHECKING:
    import torch

    from workers.inference.engines.transformers.kv_pages import KVPages
    from workers.inference.engines.transformers.kv_slots import KVSlots, OwnCaches
    from workers.inference.engines.transformers.module_adapters import ModuleAdapters

log = logging.getLogger(__name__)

LIMITS = {
    "cpu": RunnerLimits(batch=8, chunk=256, shared_chunk=64),
    "mps": RunnerLimits(batch=8, chunk=1024, shared_chunk=256),
    "cuda": RunnerLimits(batch=16, chunk=2048, shared_chunk=512),
}

_WARM_UP = 8
_INFINITE = np.float32(np.inf)


class TransformersRunner:
    """See `workers.inference.runner.Runner`.

    Args:
        paged: whether keys and values lie in pages of one pool; by default where memory is taken
            when it is reserved, that is, on a GPU.
    """

    engine = "transformers"
    stages = ("import torch", "import transformers", "read weights", "warm up")

    def __init__(self, *, paged: bool | None = None) -> None:
        self._paged = paged
        self.limits = LIMITS["cpu"]
        self.model: Any = None
        """The module that computes; some of its layers may be quantized."""
        self._device = "cpu"
        self._keeps_logits = self._mixes = self._picks = False
        self._kv_memory = 0.0
        self._memory: KVSlots | KVPages | OwnCaches
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
        self._device, self._kv_memory = form.device, settings.kv_memory
        self.limits = LIMITS[self._device]
        threads = limit_threads()
        observer.stage("import transformers")
        from workers.inference.engines.transformers import weights
        from workers.model_classes import find_class

        model_class = find_class(
            checkpoint.directory, checkpoint.model_type, checkpoint.architecture
        )
        observer.stage("read weights")
        self.model = weights.read_weights(model_class, checkpoint, form, observer)
        from workers.inference.engines.transformers.mixed_attention import can_mix
        from workers.inference.engines.transformers.module_adapters import ModuleAdapters

        self._mixes = can_mix(self.model)
        self._adapters = ModuleAdapters(self.model, self._device)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model_class.forward).parameters
        observer.stage("warm up")
        self._warm_up()
        log.info("%s as %s, %d threads", model_class.__name__, form, threads)
        return form.facts(self.engine)

    def _warm_up(self) -> None:
        """Compute something once: first calls allocate, choose kernels and start threads.

        Its cache then shows how this architecture keeps keys and values.
        """
        import torch
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        from workers.inference.engines.transformers.kv_pages import KVPages
        from workers.inference.engines.transformers.kv_slots import KVSlots, OwnCaches
        from workers.model_classes import check_finite

        cache = DynamicCache(config=self.model.config)
        with torch.inference_mode():
            self.compute(torch.arange(_WARM_UP, device=self._device)[None], cache)
            first = torch.zeros(1, 1, dtype=torch.long, device=self._device)
            logits: Logits = self.compute(first, cache).cpu().numpy()
        check_logits(logits, partial(check_finite, self.model), f"{self.model.dtype}")
        self._picks = paged = self._device != "cpu" if self._paged is None else self._paged
        if any(type(layer) is not DynamicLayer for layer in cache.layers):
            # Windows and recurrent states: nothing of it can be shared or taken back.
            log.info("%s has a cache of its own kind", type(self.model).__name__)
            self._memory = OwnCaches(self.compute, self.model.config, cache)
            self.limits = RunnerLimits(
                self.limits.batch, self.limits.chunk, self.limits.shared_chunk, reuses=False
            )
        elif paged:
            # As the engine reckons it, so that the pool holds what the engine gives out.
            budget = partial(kv_budget, self, self._kv_memory)
            self._memory = KVPages(self.compute, cache, budget)
        else:
            self._memory = KVSlots(self.compute, cache)

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

    def kv_access(self) -> None:
        return None

    def add_adapter(self, adapter: Adapter) -> int:
        return self._adapters.add(adapter)

    def drop_adapter(self, key: str) -> None:
        self._adapters.drop(key)

    # --- computing ------------------------------------------------------------------------

    def forward(self, spans: Sequence[Span]) -> list[Rows]:
        """Compute all spans of an adapter (a layer does not know its rows) in one pass, if the
        model lets it; else those of single tokens, and each longer one."""
        import torch

        found: dict[int, Rows] = {}
        for adapter in dict.fromkeys(span.adapter for span in spans):
            own = [span for span in spans if span.adapter == adapter]
            single = [span for span in own if len(span.tokens) == 1]
            groups = [single] * bool(single) + [[span] for span in own if len(span.tokens) > 1]
            passes = [groups] if self._mixes else [[group] for group in groups]
            with torch.inference_mode(), self._adapters.using(adapter):
                for each in passes:
                    for group, rows in zip(each, self._memory.compute(each), strict=True):
                        found |= self._answers(group, rows)
        return [found[span.slot] for span in spans]

    def _answers(self, spans: Sequence[Span], logits: torch.Tensor) -> dict[int, Rows]:
        """What is given of ``spans``, by slot: where logits must be copied, candidates if those are
        enough; ``logits``: (spans, wanted, vocabulary)."""
        size, ends = logits.shape[2], range(logits.shape[1])
        top = max(span.top for span in spans) if self._picks else 0
        if top:
            best = logits.topk(min(top, size))
            values, tokens = _on_host(best.values), _on_host(best.indices)
            least = np.nextafter(values[..., -1], _INFINITE)
            bounds = least if top < size else np.full_like(least, -_INFINITE)
        found: dict[int, Rows] = {}
        for row, span in enumerate(spans):
            own = ends[len(ends) - span.wanted :]
            if not (top and span.top):
                found[span.slot] = _on_host(logits[row, own.start :])
                continue
            found[span.slot] = [
                Candidates(
                    tokens[row, at],
                    values[row, at],
                    float(bounds[row, at]),
                    functools.partial(_on_host, logits[row, at]),
                )
                for at in own
            ]
        return found

    def compute(
        self, tokens: torch.Tensor, cache: Any, wanted: int | torch.Tensor = 1, **options: Any
    ) -> torch.Tensor:
        """Append tokens to a cache of transformers' kind.

        Args:
            tokens: (rows, new).
            cache: where their keys and values go.
            wanted: of how many of the last tokens the logits are wanted, at least 1; or of which.
            options: for the model.

        Returns:
            (rows, wanted, vocabulary), float32, where the model is.
        """
        if self._keeps_logits:
            options["logits_to_keep"] = wanted
        from workers.inference.engines.transformers.mixed_attention import mixing

        with mixing(self.model) if "parts" in options else contextlib.nullcontext():
            output = self.model(input_ids=tokens, past_key_values=cache, use_cache=True, **options)
        if isinstance(wanted, int):
            logits: torch.Tensor = output.logits[:, -wanted:]
        else:
            logits = output.logits if self._keeps_logits else output.logits[:, wanted]
        return logits.float()


def _on_host(numbers: torch.Tensor) -> Any:
    """An array, which is a copy if that must be. What the driver may not move is copied faster."""
    if numbers.device.type != "cuda":
        return numbers.cpu().numpy()
    import torch

    return torch.empty_like(numbers, device="cpu", pin_memory=True).copy_(numbers).numpy()
