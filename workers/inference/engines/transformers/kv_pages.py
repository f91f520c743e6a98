"""Keys and values of several sequences on a GPU: pages of one pool, written and read in place.

A GPU's memory is taken when it is reserved, so all slots share one pool, page by page. And a GPU
waits for whatever the processor does between two kernels, so a step for single tokens has one of a
few shapes, reads all that it needs to know from one tensor and asks nothing back; CUDA records its
kernels once and replays them as one graph.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache

from workers.inference.engines.transformers.kv_slots import (
    Compute,
    HeldLayer,
    causal_mask,
    shapes_of,
)
from workers.inference.engines.transformers.page_table import (
    NOTHING,
    PAGE,
    WASTE,
    PageTable,
    bucket,
    pages_of,
    pool_pages,
)
from workers.inference.runner import Logits, Span

log = logging.getLogger(__name__)

Record = Callable[[Callable[[], torch.Tensor]], Callable[[], torch.Tensor]]
"""Makes of a computation one that is repeated faster; see `CudaGraphs`."""

_TOKEN, _POSITION, _WRITE, _PAGES = range(4)
"""The columns of what a step is told of a row; its pages are from the last on."""

_WARM_UPS = 2
"""Passes before one is recorded: libraries choose kernels and reserve memory in them."""


class KVPages:
    """For architectures whose every layer attends to everything.

    Args:
        compute: computes tokens.
        sample: a cache of `DynamicLayer` that holds something.
        budget: how many tokens all slots together may hold.
        record: records steps; by default as graphs, where there is CUDA.

    Attributes:
        bytes_per_token: of all layers.
        writes: where in the pool the tokens of the pass in hand go: (rows * new,).
        table: the pages that its rows read, equally many of each row: (rows * pages,).
        rows: of the pass in hand.
        reads: whether the pass needs more than its own tokens.
        pools: keys and values of each layer, (heads, pages, PAGE, size).
    """

    def __init__(
        self, compute: Compute, sample: Any, budget: Callable[[], int], record: Record | None = None
    ) -> None:
        self._compute = compute
        self._budget = budget
        first = sample.layers[0].keys
        self._dtype: torch.dtype = first.dtype
        self._device: torch.device = first.device
        self._shapes, self.bytes_per_token = shapes_of(sample)
        self.pools: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.writes = self.table = torch.empty(0, dtype=torch.long)
        self.rows, self.reads = 1, True
        self._pages = PageTable(0, 0)
        self._told: dict[tuple[int, int], torch.Tensor] = {}
        self._recorded: dict[torch.Size, Callable[[], torch.Tensor]] = {}
        self._record = record or (CudaGraphs() if self._device.type == "cuda" else None)
        self._cache = Cache(layers=[PageLayer(self, at) for at in range(len(sample.layers))])

    def reserve(self, slots: int, capacity: int) -> None:
        self._told, self._recorded, self.pools = {}, {}, []
        count = pool_pages(min(slots * capacity, self._budget()), slots)
        self._pages = PageTable(count, slots)
        made = [
            torch.zeros(heads, count, PAGE, size, dtype=self._dtype, device=self._device)
            for heads, size in self._shapes
        ]
        self.pools = list(zip(made[::2], made[1::2], strict=True))

    def release(self, slot: int) -> None:
        """Give the pages of a slot back to the pool."""
        self._pages.fit(slot, 0)

    def copy(self, source: int, target: int, length: int) -> None:
        """Have the first ``length`` tokens of ``source`` in ``target``, too."""
        self._pages.fit(target, length)
        pages = self._pages.pages(source)[: pages_of(length)]
        source_pages, target_pages = map(self._tensor, (pages, self._pages.pages(target)))
        for pool in self._every_pool():
            pool.index_copy_(1, target_pages, pool.index_select(1, source_pages))

    def compute(self, spans: Sequence[Span]) -> Logits:
        """The logits of spans of equal length and the same adapter: (spans, wanted, vocabulary)."""
        for span in spans:
            self._fit(span.slot, span.start + len(span.tokens))
        if len(spans[0].tokens) == 1:
            return self._step(spans)[:, : spans[0].wanted]
        return np.concatenate([self._chunk(span) for span in spans])

    def _chunk(self, span: Span) -> Logits:
        """Several tokens of one slot, with as many pages as it has."""
        start, count = span.start, len(span.tokens)
        numbers = range(start, start + count)
        pages = self._pages.pages(span.slot)
        self.rows, self.reads = 1, start > 0
        self.writes = self._tensor([self._pages.index(span.slot, number) for number in numbers])
        self.table = self._tensor(pages)
        positions = self._tensor(numbers)[None]
        # Without one, transformers takes the kernels for what begins at the first token.
        mask = causal_mask(positions, len(pages) * PAGE, self._dtype) if self.reads else None
        options = {"position_ids": positions, "attention_mask": mask}
        tokens = self._tensor(span.tokens)[None]
        found = self._compute(tokens, self._cache, max(1, span.wanted), **options)
        return _on_host(found[:, : span.wanted])

    def _step(self, spans: Sequence[Span]) -> Logits:
        """A token of each of several slots: (spans, 1, vocabulary)."""
        longest = max(len(self._pages.pages(span.slot)) for span in spans)
        rows, count = bucket(len(spans)), bucket(longest)
        lines = []
        for span in spans:
            pages = self._pages.pages(span.slot)
            write = self._pages.index(span.slot, span.start)
            nothing = [NOTHING] * (count - len(pages))
            lines.append([span.tokens[0], span.start, write, *pages, *nothing])
        unasked = [spans[0].tokens[0], 0, WASTE * PAGE, *([NOTHING] * count)]
        lines += [unasked] * (rows - len(spans))
        told = self._tell(rows, count, torch.tensor(lines))
        logits = self._compute_step(told) if spans[0].adapter else self._replay(told)
        return _on_host(logits[: len(spans)])

    def _tell(self, rows: int, count: int, lines: torch.Tensor) -> torch.Tensor:
        """Bring what a step is told to where steps of its shape read it."""
        if (rows, count) not in self._told:
            self._told[rows, count] = torch.empty_like(lines, device=self._device)
        return self._told[rows, count].copy_(lines)

    def _replay(self, told: torch.Tensor) -> torch.Tensor:
        """Compute a step as it was recorded, or record it first."""
        compute = functools.partial(self._compute_step, told)
        if told.shape not in self._recorded and self._record is not None:
            try:
                self._recorded[told.shape] = self._record(compute)
            except RuntimeError as error:  # the model looks at a number; it can be computed as ever
                log.warning("the steps of this model cannot be recorded: %s", error)
                self._record = None
        return self._recorded.get(told.shape, compute)()

    def _compute_step(self, told: torch.Tensor) -> torch.Tensor:
        """Nothing in here may depend on a number in ``told``: (rows, columns and pages)."""
        positions = told[:, _POSITION : _POSITION + 1]
        self.rows, self.reads = told.shape[0], True
        self.writes, self.table = told[:, _WRITE], told[:, _PAGES:].reshape(-1)
        mask = causal_mask(positions, (told.shape[1] - _PAGES) * PAGE, self._dtype)
        options = {"position_ids": positions, "attention_mask": mask}
        return self._compute(told[:, _TOKEN : _TOKEN + 1], self._cache, 1, **options)

    def _fit(self, slot: int, tokens: int) -> None:
        """Have room for so many tokens in a slot.

        New pages are zeroed: what an earlier sequence has left in them is hidden by the mask, but
        nothing times NaN is NaN.
        """
        if new := self._pages.fit(slot, tokens):
            pages = self._tensor(new)
            for pool in self._every_pool():
                pool.index_fill_(1, pages, 0)

    def _every_pool(self) -> list[torch.Tensor]:
        return [pool for pair in self.pools for pool in pair]

    def _tensor(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor(numbers, device=self._device)


class PageLayer(HeldLayer):  # type: ignore[no-untyped-call]
    """See `HeldLayer`: the rows of a `KVPages`' pass in hand."""

    _kv: KVPages

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (rows, heads, new, size) into the pool.

        Returns:
            The keys and the values that the rows read: (rows, heads, pages * PAGE, size). What
            lies beyond a row's end is for the mask to hide.
        """
        keys, values = self._kv.pools[self._index]
        held = self._exchange(keys, key_states), self._exchange(values, value_states)
        return held if self._kv.reads else (key_states, value_states)

    def _exchange(self, pool: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        heads, _, _, size = pool.shape
        new = states.transpose(0, 1).reshape(heads, -1, size)
        pool.view(heads, -1, size).index_copy_(1, self._kv.writes, new)
        if not self._kv.reads:
            return pool
        read = pool.index_select(1, self._kv.table)
        return read.view(heads, self._kv.rows, -1, size).transpose(0, 1)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Only asked for where no mask is given: at a first token."""
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0


class CudaGraphs:
    """Records what is computed as CUDA graphs, of which no two are replayed at once."""

    def __init__(self) -> None:
        self._memory = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Return what does the same with what is then in the tensors that ``compute`` reads.

        It overwrites the result of the call before.

        Raises:
            RuntimeError: ``compute`` does what cannot be recorded, such as looking at a number.
        """
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                compute()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            result = compute()

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay


def _on_host(logits: torch.Tensor) -> Logits:
    """A copy, which nothing overwrites. What the driver may not move is copied faster."""
    if logits.device.type != "cuda":
        found: Logits = logits.cpu().numpy()
        return found
    host = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
    copied: Logits = host.copy_(logits).numpy()
    return copied
