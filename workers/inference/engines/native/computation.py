"""Steps of one model: from rows to logits, by all threads of a team."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from workers.inference.engines.native import compiler, machine_code
from workers.inference.engines.native.architecture import Architecture
from workers.inference.engines.native.counters import new_counters, phases
from workers.inference.engines.native.held_adapters import HeldAdapters
from workers.inference.engines.native.kv_memory import KVMemory
from workers.inference.engines.native.machine_code import (
    Compiled,
    MachineCode,
    address_of,
    kinds_of,
    words_of,
)
from workers.inference.engines.native.operands import Batch, Model, Operands, Queries
from workers.inference.engines.native.packed_model import make_buffers, model_of_zeros
from workers.inference.engines.native.rows import Rows
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
    """A model that a team computes, with up to ``rows`` rows and ``answers`` answers a step."""

    def __init__(
        self,
        code: MachineCode,
        architecture: Architecture,
        quantization: str,
        model: Model,
        pool: ThreadPool,
        rows: int,
        answers: int,
    ) -> None:
        self._code = code
        self._architecture = architecture
        self._model = model
        self._pool = pool
        self._room = make_buffers(architecture, quantization, rows, answers, pool.size)
        self._same_words = np.array(words_of((self._model, self._room)), np.int64)
        self._checked = False
        self.adapters = HeldAdapters(architecture)

    def step(self, memory: KVMemory, rows: Rows) -> Logits:
        """The logits of the last rows, valid until the next step."""
        vocabulary = self._architecture.vocabulary
        _check_range("slot", rows.slots, memory.slots)
        _check_range("position", rows.positions, memory.capacity)
        _check_range("token", rows.tokens, vocabulary)
        positions = np.array(rows.positions, np.int64)
        queries = Queries(len(positions), rows.run, np.array(rows.slots, np.int64), positions)
        rotations = self._architecture.rotations(positions)
        tokens = np.array(rows.tokens, np.int64)
        adapters = self.adapters.of_rows(rows.adapters)
        batch = Batch(tokens, queries, *rotations, rows.answers, adapters)
        counters = new_counters(phases(self._architecture.layers, adapted=adapters.used))
        operands = Operands(self._model, self._room, memory.cache, counters, batch)
        if not self._checked:
            self._code.check(operands)
            self._checked = True
        others = np.array(words_of(operands[2:]), np.int64)
        words = np.concatenate((self._same_words, others))
        address = address_of(words)
        self._pool.run(lambda member: self._code(member, address))
        return self._room.logits[: rows.answers, :vocabulary]


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
    cache, counters = KVMemory(a, 1, 1).cache, new_counters(phases(1, adapted=False))
    operands = Operands(model, buffers, cache, counters, batch)
    return Compiled(kinds_of(operands), compiler.emit(step, operands))


def _check_range(name: str, numbers: Sequence[int], count: int) -> None:
    """What machine code reads beyond an array is not found by anybody. No assert: `python -O`
    would leave it out."""
    if not 0 <= min(numbers) <= max(numbers) < count:
        raise IndexError(f"{name} {min(numbers)} to {max(numbers)} of {count}")
