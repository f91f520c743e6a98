"""What the machine code offers, with operands of the kinds that it is compiled for.

Imports numba. The operands are those of a model of the smallest size: the code is the same for
all.
"""

from __future__ import annotations

import numpy as np

from workers.inference.engines.native.architecture import Architecture
from workers.inference.engines.native.compiler import Export
from workers.inference.engines.native.held_adapters import HeldAdapters
from workers.inference.engines.native.int4_rounding import pack_int4
from workers.inference.engines.native.int8_rounding import pack_int8
from workers.inference.engines.native.kv_memory import KVMemory
from workers.inference.engines.native.operands import (
    Batch,
    Operands,
    Packing,
    Queries,
    SmallPacking,
    new_counters,
)
from workers.inference.engines.native.packed_model import make_buffers, model_of_zeros
from workers.inference.engines.native.step import step

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


def exports() -> dict[str, Export]:
    """By the names that `MachineCode` knows them by."""
    a, numbers = _SMALLEST, np.zeros(1, np.int64)
    queries = Queries(1, numbers, numbers, numbers)
    batch = Batch(numbers, queries, *a.rotations(numbers), numbers, HeldAdapters(a).none)
    model, buffers = model_of_zeros(a, "int4"), make_buffers(a, "int4", 1, 1, 1)
    cache, counters = KVMemory(a, 1, 1).cache, new_counters(1, adapted=False)
    bytes_, words = np.zeros(1, np.int8), np.zeros(1, np.uint16)
    vector, matrix, cube = (np.zeros((1,) * dimensions, np.float32) for dimensions in (1, 2, 3))
    packing = Packing(matrix, bytes_, words, vector, np.zeros(1, np.int16))
    small_packing = SmallPacking(
        columns=cube, words=words, scales=words, units=vector, lines=cube, group=matrix
    )
    return {
        "step": (step, Operands(model, buffers, cache, counters, batch)),
        "pack_int8": (pack_int8, packing),
        "pack_int4": (pack_int4, small_packing),
    }
