"""Steps of one model: from rows to logits, by all threads of a pool."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from workers.inference.engines.native.architecture import Architecture
from workers.inference.engines.native.held_adapters import HeldAdapters
from workers.inference.engines.native.kv_memory import KVMemory
from workers.inference.engines.native.machine_code import MachineCode, address_of, words_of
from workers.inference.engines.native.operands import (
    GIVEN_UP,
    Batch,
    Model,
    Operands,
    Queries,
    new_counters,
)
from workers.inference.engines.native.packed_model import make_buffers
from workers.inference.engines.native.thread_pool import ThreadPool
from workers.inference.runner import Logits, Span


class Computation:
    """A model that a pool of threads computes: up to ``rows`` rows and ``outputs`` rows of logits a
    step."""

    def __init__(
        self,
        code: MachineCode,
        architecture: Architecture,
        quantization: str,
        model: Model,
        pool: ThreadPool,
        rows: int,
        outputs: int,
    ) -> None:
        self._code = code["step"]
        self._architecture = architecture
        self._model = model
        self._pool = pool
        self._buffers = make_buffers(architecture, quantization, rows, outputs, pool.size)
        self._same_words = np.array(words_of((self._model, self._buffers)), np.int64)
        self._checked = False
        self.adapters = HeldAdapters(architecture)

    def step(
        self,
        memory: KVMemory,
        spans: Sequence[Span],
    ) -> Logits:
        """The logits that are wanted of each span, one after the other, valid until the next step.

        A row of the step is a token of a span.

        Raises:
            IndexError: a slot, a position, a token or the number of rows is out of range.
            InterruptedError: the pool was closed meanwhile.
        """
        architecture = self._architecture
        lengths = [len(span.tokens) for span in spans]
        begins = np.cumsum([0, *lengths])
        rows, ends = int(begins[-1]), begins[1:]
        slots = np.repeat([span.slot for span in spans], lengths)
        places = _joined(range(span.start, span.start + len(span.tokens)) for span in spans)
        tokens = _joined(span.tokens for span in spans)
        wanted = _joined(
            range(end - span.wanted, end) for end, span in zip(ends, spans, strict=True)
        )
        _check_range("length", lengths, rows + 1, least=1)
        _check_range("slot", [span.slot for span in spans], memory.slots)
        _check_range("position", places, memory.capacity)
        _check_range("token", tokens, architecture.vocabulary)
        _check_range("row", (rows - 1,), len(self._buffers.hidden))
        for span in spans:
            _check_range("wanted", (span.wanted,), len(span.tokens) + 1)
        _check_range("output", (len(wanted),), len(self._buffers.logits) + 1)
        batch = Batch(
            tokens,
            Queries(rows, begins, slots, places),
            *architecture.rotations(places),
            wanted=wanted,
            adapters=self.adapters.of_rows(_adapters(spans)),
        )
        counters = new_counters(architecture.layers, adapted=batch.adapters.used)
        operands = Operands(self._model, self._buffers, memory.cache, counters, batch)
        if not self._checked:
            self._code.check(operands)
            self._checked = True
        others = np.array(words_of(operands[2:]), np.int64)
        words = np.concatenate((self._same_words, others))
        address = address_of(words)

        def give_up() -> None:
            counters[0, GIVEN_UP] = 1

        self._pool.run(lambda member: self._code(member, address), give_up)
        if counters[0, GIVEN_UP]:
            raise InterruptedError("the step was given up")
        return self._buffers.logits[: len(wanted), : architecture.vocabulary]


def _joined(parts: Iterable[Sequence[int]]) -> NDArray[np.int64]:
    return np.fromiter(itertools.chain.from_iterable(parts), np.int64)


def _adapters(spans: Sequence[Span]) -> list[str]:
    """The key of each row; none at all if no row has one."""
    if not any(span.adapter for span in spans):
        return []
    return [span.adapter for span in spans for _ in span.tokens]


def _check_range(
    name: str, numbers: Sequence[int] | NDArray[np.int64], count: int, least: int = 0
) -> None:
    """Machine code that reads beyond an array is not caught. No assert: `python -O` would leave it
    out."""
    lowest, highest = np.min(numbers), np.max(numbers)
    if not least <= lowest <= highest < count:
        raise IndexError(f"{name} {lowest} to {highest} of {count}")
