"""The runner: a loaded model that computes logits over slots of remembered keys and values.

What is computed when, and for whom, is the scheduler's business; which token follows from the
logits is the sampler's. So a runner is only arithmetic, and every engine is one runner behind
the same scheduling, prefix reuse and sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from workers.inference.engine import EngineFacts, LoadObserver, LoadSettings
from workers.inference.packages.adapter_file import Adapter
from workers.inference.packages.checkpoint import Checkpoint

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RunnerLimits:
    """What suits a runner on its device.

    Attributes:
        batch: sequences that one `decode` computes together.
        chunk: prompt tokens of one `prefill`: enough to keep the device busy, few enough that
            a cancel, which waits for it, is not felt.
        shared_chunk: the same while other sequences wait for their next token.
        lazy: memory that is reserved and not yet used is nobody's.
        reuses: a slot can be cut back to any of its beginnings, and copied.
        exact: a row gets the same bits in any company, and the rows of one `decode` may be
            successive tokens of one slot.
    """

    batch: int
    chunk: int
    shared_chunk: int
    lazy: bool = True
    reuses: bool = True
    exact: bool = False


class Runner(Protocol):
    """One thread calls it. A slot holds the keys and values of one sequence's tokens."""

    @property
    def engine(self) -> str:
        """Its name."""

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of `load`, in order."""

    @property
    def limits(self) -> RunnerLimits:
        """Known after `load`."""

    def prepare(self) -> None:
        """Import what `load` needs. Ahead of it, so that this can overlap a download."""

    def load(
        self, checkpoint: Checkpoint, settings: LoadSettings, observer: LoadObserver
    ) -> EngineFacts:
        """Bring the weights into memory.

        Raises:
            ShammahError: see `workers.inference.engine.Engine`.
        """

    def kv_bytes_per_token(self) -> int:
        """Memory of one token's keys and values in all layers."""

    def free_bytes(self) -> int:
        """Memory that is free where the keys and values lie."""

    def reserve(self, slots: int, capacity: int) -> None:
        """Have ``slots`` slots of ``capacity`` tokens each, empty."""

    def release(self, slot: int) -> None:
        """Nothing in the slot is needed any more: its memory may go back."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Have the first ``length`` tokens of ``source`` in ``target``, too."""

    def add_adapter(self, adapter: Adapter) -> int:
        """Have an adapter that rows can be computed with; the bytes that it takes.

        Raises:
            ShammahError: see `workers.inference.engine.Engine`.
        """

    def drop_adapter(self, key: str) -> None:
        """The adapter is needed no more."""

    def prefill(self, slot: int, start: int, tokens: Sequence[int], adapter: str = "") -> Logits:
        """Compute ``tokens`` at the positions from ``start``, after those in the slot.

        ``adapter``: the key of the one that they are computed with; empty: none.

        Returns:
            The logits after the last of them: (vocabulary,).
        """

    def decode(
        self,
        slots: Sequence[int],
        positions: Sequence[int],
        tokens: Sequence[int],
        adapters: Sequence[str] = (),
    ) -> Logits:
        """Compute one token for each of ``slots``, at its position, with its adapter.

        ``adapters`` are keys, empty for none; no keys at all: none has one.

        What a slot holds from that position on is replaced. Where the limits say `exact`, a slot
        may be there more than once, at rising positions.

        Returns:
            The logits after each: (len(slots), vocabulary).
        """
