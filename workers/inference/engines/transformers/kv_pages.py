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
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache

from workers.inference.engines.transformers.kv_slots import HeldLayer, causal_mask, shapes_of
from workers.inference.engines.transformers.mixed_attention import Compute, Part, compute_parts
from workers.inference.engines.transformers.page_table import (
    NOTHING,
    PAGE,
    WASTE,
    PageTable,
    bucket,
    pages_of,
    pool_pages,
)
from workers.inference.runner import Span

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
        rows: of the pass in hand.
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
        self.rows: list[PageRows] = []
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

    def compute(self, groups: Sequence[Sequence[Span]]) -> list[torch.Tensor]:
        """The logits of groups of spans, of single tokens or one span: (spans, wanted, vocabulary).

        The next call may change them.
        """
        for span in (span for spans in groups for span in spans):
            self._fit(span.slot, span.start + len(span.tokens))
        first, single = groups[0], [len(spans[0].tokens) == 1 for spans in groups]
        if single == [True]:
            told = self._tell(first)
            logits = self._compute_step(told) if first[0].adapter else self._replay(told)
            return [logits[: len(first), : max(span.wanted for span in first)]]
        self.rows, parts = [], []
        for spans, one in zip(groups, single, strict=True):
            rows, part = self._step(self._tell(spans)) if one else self._chunk(spans[0])
            self.rows.append(rows)
            parts.append(part)
        found = compute_parts(self._compute, self._cache, parts)
        return [rows[: len(spans)] for rows, spans in zip(found, groups, strict=True)]

    def _chunk(self, span: Span) -> tuple[PageRows, Part]:
        """Several tokens of one slot, with as many pages as it has."""
        start, count = span.start, len(span.tokens)
        numbers = range(start, start + count)
        pages = self._pages.pages(span.slot)
        writes = self._tensor([self._pages.index(span.slot, number) for number in numbers])
        positions, tokens = self._tensor(numbers)[None], self._tensor(span.tokens)[None]
        # Without one, transformers takes the kernels for what begins at the first token.
        mask = causal_mask(positions, len(pages) * PAGE, self._dtype) if start > 0 else None
        rows = PageRows(tokens.shape, writes, self._tensor(pages), start > 0)
        return rows, Part(tokens, positions, mask, span.wanted)

    def _step(self, told: torch.Tensor) -> tuple[PageRows, Part]:
        """A token of each of several slots. Nothing in here may depend on a number in ``told``."""
        tokens = told[:, _TOKEN : _TOKEN + 1]
        positions = told[:, _POSITION : _POSITION + 1]
        mask = causal_mask(positions, (told.shape[1] - _PAGES) * PAGE, self._dtype)
        rows = PageRows(tokens.shape, told[:, _WRITE], told[:, _PAGES:].reshape(-1), True)
        return rows, Part(tokens, positions, mask, 1)

    def _compute_step(self, told: torch.Tensor) -> torch.Tensor:
        rows, part = self._step(told)
        self.rows = [rows]
        return compute_parts(self._compute, self._cache, [part])[0]

    def _tell(self, spans: Sequence[Span]) -> torch.Tensor:
        """Bring what a step for single tokens is told to where steps of its shape read it: (rows,
        columns and pages)."""
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
        if (rows, count) not in self._told:
            self._told[rows, count] = self._tensor(lines)
        return self._told[rows, count].copy_(torch.tensor(lines))

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

    def _tensor(self, numbers: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(numbers, device=self._device)


@dataclass(frozen=True, slots=True)
class PageRows:
    """Rows of a pass, of ``shape`` (rows, new).

    Attributes:
        writes: where in the pool their tokens go: (rows * new,).
        table: the pages that they read, equally many of each row: (rows * pages,).
        reads: whether they need more than their own tokens.
    """

    shape: torch.Size
    writes: torch.Tensor
    table: torch.Tensor
    reads: bool


class PageLayer(HeldLayer):  # type: ignore[no-untyped-call]
    """See `HeldLayer`: the rows of a `KVPages`' pass in hand."""

    def exchange(
        self, rows: PageRows, key_states: torch.Tensor, value_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found = []
        for pool, states in zip(
            self._kv.pools[self._index], (key_states, value_states), strict=True
        ):
            heads, _, _, size = pool.shape
            new = states.transpose(0, 1).reshape(heads, -1, size)
            pool.view(heads, -1, size).index_copy_(1, rows.writes, new)
            if rows.reads:
                read = pool.index_select(1, rows.table)
                states = read.view(heads, rows.shape[0], -1, size).transpose(0, 1)
            found.append(states)
        return found[0], found[1]

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
