"""Steps of one model: from rows to logits, by all threads of a pool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from workers.inference.engines.native import compiler, machine_code
from workers.inference.engines.native.architecture import Architecture
from workers.inference.engines.native.held_adapters import HeldAdapters
from workers.inference.engines.native.kv_memory import KVMemory
from workers.inference.engines.native.machine_code import (
    Compiled,
    MachineCode,
    address_of,
    kinds_of,
    words_of,
)
from workers.inference.engines.native.operands import Batch, Model, Operands, Queries, new_counters
from workers.inference.engines.native.packed_model import make_buffers, model_of_zeros
from workers.inference.engines.native.thread_pool import ThreadPool
from workers.inference.runner import Logits

_SMALLEST = Architecture(
    layers=1,
    hidden=64,
    heads=1,
    kv_heads=1,
    head_size=16,
    intermediate=64,
    vocabulary=16,
    positions=16,
    eps=1e-6,
    tied=True,
    has_bias=False,
    has_head_norms=False,
    frequencies=(0.0,) * 8,
)


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
        self._code = code
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
        slots: Sequence[int],
        positions: Sequence[int],
        tokens: Sequence[int],
        *,
        per_slot: int = 1,
        outputs: int,
        adapters: Sequence[str] = (),
    ) -> Logits:
        """The logits of the last ``outputs`` rows, valid until the next step.

        A row is a token at a position of a slot; ``per_slot`` successive rows belong to one slot,
        at rising positions. ``adapters``: the key of each row's adapter, empty for none; no keys:
        no row has one.
        """
        architecture = self._architecture
        _check_range("slot", slots, memory.slots)
        _check_range("position", positions, memory.capacity)
        _check_range("token", tokens, architecture.vocabulary)
        _check_range("row", (len(tokens) - 1,), len(self._buffers.hidden))
        _check_range("output", (outputs,), len(self._buffers.logits) + 1)
        places = np.array(positions, np.int64)
        queries = Queries(len(places), per_slot, np.array(slots, np.int64), places)
        batch = Batch(
            np.array(tokens, np.int64),
            queries,
            *architecture.rotations(places),
            outputs=outputs,
            adapters=self.adapters.of_rows(adapters),
        )
        counters = new_counters(architecture.layers, adapted=batch.adapters.used)
        operands = Operands(self._model, self._buffers, memory.cache, counters, batch)
        if not self._checked:
            self._code.check(operands)
            self._checked = True
        others = np.array(words_of(operands[2:]), np.int64)
        words = np.concatenate((self._same_words, others))
        address = address_of(words)
        self._pool.run(lambda member: self._code(member, address))
        return self._buffers.logits[:outputs, : architecture.vocabulary]


def prepare_kernels(directory: Path) -> MachineCode:
    """The machine code of `step.step`, kept below ``directory``, or compiled now."""
    path = machine_code.code_path(compiler.own_directory(directory))
    found = machine_code.load(path)
    if found is None:
        found = _compile(directory)
        machine_code.keep(path, found)
    return MachineCode(found)


def _compile(directory: Path) -> Compiled:
    """With a model of the smallest size: the code is the same for all."""
    compiler.prepare(directory)
    from workers.inference.engines.native.step import step

    a = _SMALLEST
    numbers = np.zeros(1, np.int64)
    queries = Queries(1, 1, numbers, numbers)
    batch = Batch(numbers, queries, *a.rotations(numbers), 1, HeldAdapters(a).none)
    model, buffers = model_of_zeros(a, "int4"), make_buffers(a, "int4", 1, 1, 1)
    cache, counters = KVMemory(a, 1, 1).cache, new_counters(1, adapted=False)
    operands = Operands(model, buffers, cache, counters, batch)
    return Compiled(kinds_of(operands), compiler.emit(step, operands))


def _check_range(name: str, numbers: Sequence[int], count: int) -> None:
    """Machine code that reads beyond an array is not caught. No assert: `python -O` would leave it
    out."""
    if not 0 <= min(numbers) <= max(numbers) < count:
        raise IndexError(f"{name} {min(numbers)} to {max(numbers)} of {count}")
