"""The runner for Apple silicon: mlx-lm's models, computed by mlx.

`workers.inference.runner` says what a runner promises. A step is a pass for each prompt's chunk,
without the head, and one pass for the last tokens of all spans together: mlx's attention takes no
rows of unequal lengths, and mlx-lm's models no rows that share their linear layers alone.

mlx writes in place, so a pass that breaks off loses all that its slots held. That is one prompt's
chunk as a rule: it takes most memory, and is computed first.

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
        from mlx_lm.models.cache import make_prompt_cache

        from workers.inference.engines.mlx.kv_slots import KVSlots
        from workers.inference.engines.mlx.weights import check_finite

        cache = make_prompt_cache(self.model)
        self._run([range(_WARM_UP)], cache, head=False)
        logits = self._run([[0]], cache)
        self._vocabulary = logits.shape[-1]
        check_logits(logits, partial(check_finite, self.model), "the format of its weights")
        self._memory = KVSlots(cache)

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
        """Compute spans that have one adapter (a layer does not know its rows): first what comes
        before the wanted logits, since a head over a whole chunk takes long."""
        found = {span.slot: np.empty((0, self._vocabulary), np.float32) for span in spans}
        with self._adapters.using(spans[0].adapter):
            for span in spans:
                before = span.tokens[: len(span.tokens) - span.wanted]
                if before:
                    self._pass([span.slot], [span.start], [before], head=False)
            for wanted in {span.wanted for span in spans} - {0}:
                own = [span for span in spans if span.wanted == wanted]
                slots = [span.slot for span in own]
                starts = [span.start + len(span.tokens) - wanted for span in own]
                logits = self._pass(slots, starts, [span.tokens[-wanted:] for span in own])
                found |= zip(slots, logits, strict=True)
        return found

    def _pass(
        self,
        slots: Sequence[int],
        starts: Sequence[int],
        rows: Sequence[Sequence[int]],
        *,
        head: bool = True,
    ) -> Logits:
        """Append ``rows`` of equally many tokens to ``slots``; see `_run`."""
        cache = self._memory.caches(slots, starts)
        try:
            return self._run(rows, cache, head=head)
        except Exception:
            self._memory.lose(slots)
            raise

    def _run(self, rows: Sequence[Sequence[int]], cache: list[Any], *, head: bool = True) -> Logits:
        """Return the logits after every token: (rows, tokens, vocabulary); none without the head,
        which mlx computes only if it is needed."""
        import mlx.core as mx

        logits = self.model(mx.array([list(row) for row in rows]), cache=cache)
        state = [layer.state for layer in cache]
        if not head:
            mx.eval(state)
            return np.empty((len(rows), 0, 0), np.float32)
        logits = logits.astype(mx.float32)
        mx.eval(logits, state)
        return np.array(logits)
