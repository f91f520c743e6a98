"""How threads share a step: a phase is a number of items, and a free thread takes the next.

A phase is over when all its items are finished, by any thread. So none waits for one that is
late, or missing: the others do its work. What an item computes depends on its
number alone, so the result does not depend on the threads either.

Only an item that is never finished would be waited for without end. So a thread that fails has the
step given up: from then on nothing is waited for, and there are no more items.

``counters`` is one row per phase of a step.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types

from workers.inference.engines.native.compiler import compiled, operation
from workers.inference.engines.native.operands import FINISHED, GIVEN_UP, ROW, TAKEN, Counters

_PATIENCE = 2000
"""Looks at a counter, about a microsecond, before the processor is offered to others."""

_NONE = 1 << 60
"""More items than any phase has."""

_yield_processor = types.ExternalFunction("sched_yield", types.int32())


@operation(types.int64, types.Array, types.intp)
def _add_one(builder: Any, array: Any, at: Any) -> Any:
    """Add one to ``array[at]``, at once for all threads; the number before."""
    one = ir.Constant(ir.IntType(64), 1)
    return builder.atomic_rmw("add", builder.gep(array, [at]), one, "acq_rel")


@operation(types.int64, types.Array, types.intp)
def _read(builder: Any, array: Any, at: Any) -> Any:
    """``array[at]`` as it is now; what was written before it got that value is visible."""
    return builder.load_atomic(builder.gep(array, [at]), "acquire", 8)


@compiled
def next_item(counters: Counters, phase: int) -> int:
    """An item for this thread alone; a number past the last when all are taken."""
    if _read(counters, GIVEN_UP):
        return _NONE
    taken: int = _add_one(counters, phase * ROW + TAKEN)
    return taken


@compiled
def finish_item(counters: Counters, phase: int) -> None:
    """Say that an item is done; what it wrote is then seen by all."""
    _add_one(counters, phase * ROW + FINISHED)


@compiled
def wait_for_all(counters: Counters, phase: int, items: int) -> None:
    """Return when all items of the phase are finished, or the step is given up."""
    looks = 0
    while _read(counters, phase * ROW + FINISHED) < items:
        looks += 1
        if looks > _PATIENCE:
            if _read(counters, GIVEN_UP):
                return
            _yield_processor()
