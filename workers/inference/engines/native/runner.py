"""The native runner: 8-bit or 4-bit weights on the CPU, without torch.

`workers.inference.runner` says what a runner promises. Beyond that, this one gives a sequence
the same bits however its prompt is cut into chunks and whatever shares its batch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shammah.errors import ShammahError
from shammah.settings.load import home_directory
from workers.inference.cores import usable_cores
from workers.inference.engine import EngineFacts, LoadObserver, LoadSettings
from workers.inference.engines.native import processor
from workers.inference.engines.native.architecture import Architecture, read_architecture, supports
from workers.inference.engines.native.computation import Computation
from workers.inference.engines.native.kernels import (
    HERE,
    digest_of_text,
    kernel_directory,
    prepare_kernels,
)
from workers.inference.engines.native.kv_memory import KVMemory, bytes_per_token
from workers.inference.engines.native.machine_code import MachineCode
from workers.inference.engines.native.packed_model import open_model
from workers.inference.engines.native.spec import place
from workers.inference.engines.native.thread_pool import ThreadPool
from workers.inference.memory import free_main_memory
from workers.inference.packages.adapter_file import Adapter
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.runner import KVAccess, Logits, RunnerLimits, Span

__all__ = ["NativeRunner", "supports"]

log = logging.getLogger(__name__)

LIMITS = RunnerLimits(batch=8, chunk=256, shared_chunk=64, exact=True)


class NativeRunner:
    """See `workers.inference.runner.Runner`."""

    engine = "native"
    stages: tuple[str, ...] = ("prepare kernels", "prepare weights", "warm up")
    limits = LIMITS

    quantization = "int8"
    """What the weights have been made into."""

    _architecture: Architecture
    _code: MachineCode
    _computation: Computation
    _memory: KVMemory

    def __init__(
        self, quantized: Path | None = None, kernels: Path | None = None, threads: int = 0
    ) -> None:
        """``quantized`` and ``kernels``: where packed weights and machine code are kept, if not
        in the home. ``threads``: 0 for one a core."""
        self._quantized, self._given_kernels = quantized, kernels
        self._pool = ThreadPool(threads or usable_cores())

    def close(self) -> None:
        """End the threads; nothing else may be called then."""
        self._pool.close()

    # --- loading --------------------------------------------------------------------------

    def prepare(self, home: Path | None = None) -> None:
        """Load the kernels; compile them if none are carried for this processor.

        Raises:
            ShammahError: ``model_unsupported``: this processor cannot run the kernels.
        """
        if why := processor.obstacle():
            raise ShammahError(
                "model_unsupported",
                f"The native engine cannot run here: it {why}.",
                "Set inference.engine to auto.",
            )
        directory = self._given_kernels or kernel_directory(home or home_directory(os.environ))
        self._code = prepare_kernels(directory)

    def load(
        self, checkpoint: Checkpoint, settings: LoadSettings, observer: LoadObserver
    ) -> EngineFacts:
        self._architecture = read_architecture(checkpoint)
        placement = place(checkpoint, settings)
        quantization = self.quantization = placement.quantization
        observer.stage("prepare kernels")
        self.prepare(settings.home)
        observer.stage("prepare weights")
        directory = self._quantized or (settings.home or home_directory(os.environ)) / "quantized"
        a, pool = self._architecture, self._pool
        advance = observer.advance
        model, note = open_model(
            checkpoint,
            a,
            quantization=quantization,
            directory=directory,
            code=self._code,
            threads=pool.size,
            advance=advance,
        )
        observer.stage("warm up")
        self._computation = Computation(
            self._code,
            a,
            quantization=quantization,
            model=model,
            pool=pool,
            rows=LIMITS.chunk,
            outputs=LIMITS.batch,
        )
        self.reserve(1, 1)
        self.forward([Span(0, 0, [0])])
        log.info("%s in %s, %d threads", checkpoint.architecture, quantization, self._pool.size)
        return placement.facts(self.engine, note=note)

    # --- memory ---------------------------------------------------------------------------

    def kv_bytes_per_token(self) -> int:
        return bytes_per_token(self._architecture)

    def free_bytes(self) -> int:
        return free_main_memory()

    def reserve(self, slots: int, capacity: int) -> None:
        self._memory = KVMemory(self._architecture, slots, capacity)

    def release(self, slot: int) -> None:
        self._memory.release(slot)

    def copy(self, source: int, target: int, length: int) -> None:
        self._memory.copy(source, target, length)

    def kv_access(self) -> KVAccess:
        features = " ".join(sorted(processor.features()))
        form = (self.engine, self.quantization, digest_of_text(HERE), processor.kind(), features)
        memory = self._memory
        return KVAccess("\n".join(form), self.kv_bytes_per_token(), memory.dump, memory.load)

    # --- adapters -------------------------------------------------------------------------

    def add_adapter(self, adapter: Adapter) -> int:
        return self._computation.adapters.add(adapter)

    def drop_adapter(self, key: str) -> None:
        self._computation.adapters.drop(key)

    # --- computing ------------------------------------------------------------------------

    @property
    def vocabulary(self) -> int:
        """Logits of a row."""
        return self._architecture.vocabulary

    def forward(self, spans: Sequence[Span]) -> list[Logits]:
        logits = self._computation.step(self._memory, spans).copy()
        ends = np.cumsum([span.wanted for span in spans])
        return np.split(logits, ends[:-1])
