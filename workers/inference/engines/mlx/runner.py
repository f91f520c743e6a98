"""The runner for Apple silicon: mlx-lm's models, computed by mlx.

`workers.inference.runner` says what a runner promises. A step is one pass for the tokens of all
spans that have the same adapter (see `kv_slots`); the head is for the wanted rows alone. Of those
all logits are given: where memory is shared, picking candidates takes longer than handing all over.

mlx writes in place, so a pass that breaks off loses all that its slots held.

mlx computes when a value is needed, on the thread that asked for it. So everything has been
computed when a call returns: what is left over could not be computed on another thread.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from shammah.settings.load import home_directory
from workers.inference.engine import EngineFacts, LoadObserver, LoadSettings
from workers.inference.engines.mlx.spec import free_memory, place
from workers.inference.packages.adapter_file import Adapter
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.runner import Logits, RunnerLimits, Span, check_logits

if TYPE_CHECKING:
    from workers.inference.engines.mlx.adapted_layers import ModelAdapters
    from workers.inference.engines.mlx.kv_slots import KVSlots
    from workers.inference.engines.mlx.wanted_rows import WantedRows

log = logging.getLogger(__name__)

LIMITS = RunnerLimits(batch=8, chunk=512, shared_chunk=128)

_CACHE_BYTES = 256 * 1024**2
"""Freed memory that mlx may keep for the next pass; its own default is most of the machine's."""

_WARM_UP = 8


class MlxRunner:
    """See `workers.inference.runner.Runner`."""

    engine = "mlx"
    stages = ("import mlx", "read weights", "warm up")
    limits = LIMITS

    def __init__(self) -> None:
        self.model: Any = None
        """The module of mlx-lm's that computes."""
        self._memory: KVSlots
        self._adapters: ModelAdapters
        self._wanted: WantedRows
        self._vocabulary = 0

    # --- loading --------------------------------------------------------------------------

    def prepare(self) -> None:
        from workers.inference.engines.mlx import weights

        weights.import_models()

    def load(
        self, checkpoint: Checkpoint, settings: LoadSettings, observer: LoadObserver
    ) -> EngineFacts:
        observer.stage("import mlx")
        import mlx.core as mx

        from workers.inference.engines.mlx import weights
        from workers.inference.engines.mlx.adapted_layers import ModelAdapters

        weights.import_models()
        form = place(checkpoint, settings)
        mx.set_cache_limit(_CACHE_BYTES)
        observer.stage("read weights")
        home = settings.home or home_directory(os.environ)
        self.model, note = weights.read_weights(checkpoint, form, home, observer.advance)
        self._adapters = ModelAdapters(self.model)
        observer.stage("warm up")
        self._warm_up()
        log.info("%s as %s on %s", checkpoint.architecture, form, mx.default_device())
        return form.facts(self.engine, note=note)

    def _warm_up(self) -> None:
        """Compute something once: first calls compile kernels, and the cache then shows which keys
        and values this architecture has."""
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        from workers.inference.engines.mlx.kv_slots import KVSlots
        from workers.inference.engines.mlx.wanted_rows import WantedRows
        from workers.inference.engines.mlx.weights import check_finite

        cache = make_prompt_cache(self.model)
        logits = self.model(mx.array([list(range(_WARM_UP))]), cache=cache)[0, -1:]
        self._vocabulary = logits.shape[-1]
        found = np.array(logits.astype(mx.float32))
        check_logits(found, partial(check_finite, self.model), "the format of its weights")
        self._memory = KVSlots(cache)
        self._wanted = self.model.model.norm = WantedRows(self.model.model.norm)

    # --- memory ---------------------------------------------------------------------------

    def kv_bytes_per_token(self) -> int:
        return max(1, self._memory.bytes_per_token)

    def free_bytes(self) -> int:
        return free_memory()

    def reserve(self, slots: int, capacity: int) -> None:
        self._memory.reserve(slots)

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

    def forward(self, spans: Sequence[Span]) -> list[Logits]:
        found: dict[int, Logits] = {}
        for key in dict.fromkeys(span.adapter for span in spans):
            found |= self._compute([span for span in spans if span.adapter == key])
        return [found[span.slot] for span in spans]

    def _compute(self, spans: list[Span]) -> dict[int, Logits]:
        """Compute spans that have one adapter: a layer does not know its rows."""
        import mlx.core as mx

        ends = np.cumsum([len(span.tokens) for span in spans])
        wanted = [range(end - span.wanted, end) for end, span in zip(ends, spans, strict=True)]
        rows = [row for one in wanted for row in one]
        layers = self._memory.layers(spans)
        self._wanted.choose(rows)
        try:
            with self._adapters.using(spans[0].adapter):
                tokens = [[token] for span in spans for token in span.tokens]
                logits = self.model(mx.array(tokens), cache=layers)[:, 0].astype(mx.float32)
            # mlx computes no head that is not asked for.
            mx.eval([layer.held for layer in layers], *([logits] if rows else []))
        except Exception:
            self._memory.release(*(span.slot for span in spans))
            raise
        whole = np.array(logits) if rows else np.empty((0, self._vocabulary), np.float32)
        parts = np.split(whole, np.cumsum([span.wanted for span in spans])[:-1])
        return {span.slot: part for span, part in zip(spans, parts, strict=True)}
