"""The native runner: 8-bit weights on the CPU, without torch.

`workers.inference.runner` says what a runner promises. Beyond that, this one gives a sequence
the same bits however its prompt is cut into chunks and whoever shares its batch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shammah.config import home_directory
from workers.inference import placement
from workers.inference.checkpoint import Checkpoint
from workers.inference.engine import EngineFacts, LoadObserver, LoadSettings
from workers.inference.memory import check_weights
from workers.inference.native import compiler
from workers.inference.native.architecture import Architecture, read_architecture, supports
from workers.inference.native.rows import Rows
from workers.inference.native.team import Team, physical_cores
from workers.inference.runner import Logits, RunnerLimits

if TYPE_CHECKING:
    from workers.inference.native.computation import Computation
    from workers.inference.native.kv_memory import KVMemory

__all__ = ["NativeRunner", "supports"]

log = logging.getLogger(__name__)

WEIGHT_BYTES = 1.07
"""Memory of a weight: 8 bits, and its share of a scale."""

LIMITS = RunnerLimits(batch=8, chunk=256, shared_chunk=64)


class NativeRunner:
    """See `workers.inference.runner.Runner`."""

    engine = "native"
    stages: tuple[str, ...] = ("prepare kernels", "prepare weights", "warm up")
    limits = LIMITS

    _architecture: Architecture
    _computation: Computation
    _memory: KVMemory

    def __init__(
        self, quantized: Path | None = None, kernels: Path | None = None, threads: int = 0
    ) -> None:
        """``quantized`` and ``kernels``: where packed weights and machine code are kept, if not
        in the home. ``threads``: 0 for one a core."""
        self._quantized, self._kernels = quantized, kernels
        self._team = Team(threads or physical_cores())

    def close(self) -> None:
        """End the threads; nothing else may be called then."""
        self._team.close()

    # --- loading --------------------------------------------------------------------------

    def prepare(self, home: Path | None = None) -> None:
        """Import numba, and compile what has not been compiled on this machine before."""
        compiler.prepare(self._kernels or (home or home_directory(os.environ)) / "kernels")
        from workers.inference.native.computation import prepare_kernels

        prepare_kernels(self._team)

    def load(
        self, checkpoint: Checkpoint, settings: LoadSettings, observer: LoadObserver
    ) -> EngineFacts:
        self._architecture = read_architecture(checkpoint)
        check_weights(int(WEIGHT_BYTES * checkpoint.parameters), self.free_bytes(), "8 bit")
        observer.stage("prepare kernels")
        self.prepare(settings.home)
        observer.stage("prepare weights")
        from workers.inference.native.computation import Computation
        from workers.inference.native.packed_model import open_model

        directory = self._quantized or (settings.home or home_directory(os.environ)) / "quantized"
        model = open_model(
            checkpoint, self._architecture, directory, self._team.size, observer.advance
        )
        observer.stage("warm up")
        self._computation = Computation(
            self._architecture, model, self._team, LIMITS.chunk, LIMITS.batch
        )
        self.reserve(1, 1)
        self.prefill(0, 0, [0])
        log.info("%s in 8 bit, %d threads", checkpoint.architecture, self._team.size)
        why = "8-bit weights are the fastest that this processor computes"
        return EngineFacts(self.engine, "cpu", "float32", "int8", why=why)

    # --- memory ---------------------------------------------------------------------------

    def kv_bytes_per_token(self) -> int:
        from workers.inference.native.kv_memory import bytes_per_token

        return bytes_per_token(self._architecture)

    def free_bytes(self) -> int:
        return placement.free_memory("cpu")

    def reserve(self, slots: int, capacity: int) -> None:
        from workers.inference.native.kv_memory import KVMemory

        self._memory = KVMemory(self._architecture, slots, capacity)

    def release(self, slot: int) -> None:
        self._memory.release(slot)

    def copy(self, source: int, target: int, length: int) -> None:
        self._memory.copy(source, target, length)

    # --- computing ------------------------------------------------------------------------

    @property
    def vocabulary(self) -> int:
        """Logits of a row."""
        return self._architecture.vocabulary

    def prefill(self, slot: int, start: int, tokens: Sequence[int]) -> Logits:
        logits = np.empty((0, 0), np.float32)
        for begin in range(0, len(tokens), LIMITS.chunk):
            chunk = tokens[begin : begin + LIMITS.chunk]
            positions = range(start + begin, start + begin + len(chunk))
            last = int(begin + len(chunk) == len(tokens))
            rows = Rows([slot] * len(chunk), positions, chunk, len(chunk), last)
            logits = self._computation.step(self._memory, rows)
        return np.array(logits[0])

    def decode(
        self, slots: Sequence[int], positions: Sequence[int], tokens: Sequence[int]
    ) -> Logits:
        found = []
        for begin in range(0, len(slots), LIMITS.batch):
            some = slice(begin, begin + LIMITS.batch)
            rows = Rows(slots[some], positions[some], tokens[some], 1, len(slots[some]))
            found.append(self._computation.step(self._memory, rows).copy())
        return np.concatenate(found)
