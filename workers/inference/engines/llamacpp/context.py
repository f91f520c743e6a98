"""A context of llama.cpp: keys and values of some slots, and the arithmetic over them."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from shammah.bus.record import record
from workers.inference.engines.llamacpp.library import unavailable
from workers.inference.engines.llamacpp.models import Model
from workers.inference.engines.llamacpp.structures import Batch
from workers.inference.runner import Logits

PASS = 512
"""Tokens that llama.cpp computes at once. Memory for the intermediate results of so many is set
aside."""

OUTPUTS = 64
"""Rows of logits of a pass; the same."""

_NO_ROOM = 1
"""What `llama_decode` returns where there are too few free cells; nothing has changed then."""


@record
class Rows:
    """Tokens to compute: of each its number, position and slot (int32), and whether its logits are
    wanted (int8, 1 or 0)."""

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    slots: NDArray[np.int32]
    wanted: NDArray[np.int8]

    def part(self, begin: int, end: int) -> Rows:
        cut = slice(begin, end)
        return Rows(self.tokens[cut], self.positions[cut], self.slots[cut], self.wanted[cut])


class NoRoomError(Exception):
    """The context has too few free cells for the rows; it is as it was."""


class Context:
    """The cells of all slots are one pool: a slot may have as many as are free, and what is copied
    from one to another is there once.

    Args:
        model: with weights.
        slots: numbered from 0.
        cells: tokens that all slots together can hold, at least; not fewer than `PASS`.
        threads: that compute.

    Raises:
        MemoryError: there is too little for it.
        ShammahError: ``engine_unavailable``: llama.cpp has misunderstood the parameters.
    """

    def __init__(self, model: Model, *, slots: int, cells: int, threads: int) -> None:
        self._model = model
        self._library = library = model.library
        self._pointer = 0
        parameters = library.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max, parameters.kv_unified = cells, slots, True
        parameters.n_batch = parameters.n_ubatch = PASS
        parameters.n_outputs_max = parameters.n_outputs_max_per_seq = OUTPUTS
        parameters.n_threads = parameters.n_threads_batch = threads
        library.failures()
        self._pointer = library.llama_init_from_model(model.pointer, parameters)
        if not self._pointer:
            raise MemoryError(f"llama.cpp made no context ({library.failures()})")
        self._memory = library.llama_get_memory(self._pointer)
        self._vocabulary: int = library.llama_vocab_n_tokens(model.vocabulary)
        self._check(slots, threads, cells)

    def _check(self, slots: int, threads: int, cells: int) -> None:
        found = [
            getattr(self._library, f"llama_{name}")(self._pointer)
            for name in ("n_batch", "n_ubatch", "n_seq_max", "n_threads", "n_threads_batch")
        ]
        if self.cells < cells or found != [PASS, PASS, slots, threads, threads]:
            raise unavailable("it takes the parameters of a context for others")

    def close(self) -> None:
        if self._pointer:
            self._library.llama_free(self._pointer)
        self._pointer = 0

    def __del__(self) -> None:
        self.close()

    # --- memory ---------------------------------------------------------------------------

    @property
    def cells(self) -> int:
        """Tokens that all slots together can hold."""
        return int(self._library.llama_n_ctx(self._pointer))

    def cut(self, slot: int, length: int) -> None:
        """Keep the first ``length`` tokens of a slot.

        Raises:
            RuntimeError: this memory cannot be cut there.
        """
        if not self._library.llama_memory_seq_rm(self._memory, slot, length, -1):
            raise RuntimeError(f"llama.cpp cannot cut this model's memory back to {length} tokens")

    def copy(self, source: int, target: int, length: int) -> None:
        """Have the first ``length`` tokens of ``source`` in ``target``, and nothing else."""
        self.cut(target, 0)
        self._library.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def slot_bytes(self, slot: int) -> int:
        """What the slot holds, in bytes."""
        return int(self._library.llama_state_seq_get_size(self._pointer, slot))

    def state(self) -> ctypes.Array[ctypes.c_char]:
        """All that the slots hold."""
        size = self._library.llama_state_get_size(self._pointer)
        state = ctypes.create_string_buffer(size)
        self._library.llama_state_get_data(self._pointer, state, size)
        return state

    def restore(self, state: ctypes.Array[ctypes.c_char]) -> None:
        """Hold what another context of the model held.

        Raises:
            RuntimeError: it cannot be.
        """
        if not self._library.llama_state_set_data(self._pointer, state, len(state)):
            raise RuntimeError(f"llama.cpp lost its memory ({self._library.failures()})")

    # --- computing ------------------------------------------------------------------------

    def compute(self, rows: Rows) -> Logits:
        """Compute up to `PASS` tokens, of which up to `OUTPUTS` have logits.

        Returns:
            The logits of the wanted rows: (wanted, vocabulary).

        Raises:
            NoRoomError: see there.
            RuntimeError: llama.cpp has failed.
        """
        count = len(rows.tokens)
        ones = np.ones(count, np.int32)
        addresses = rows.slots.ctypes.data + rows.slots.itemsize * np.arange(count, dtype=np.uintp)
        batch = Batch(
            n_tokens=count,
            token=rows.tokens.ctypes.data,
            pos=rows.positions.ctypes.data,
            n_seq_id=ones.ctypes.data,
            seq_id=addresses.ctypes.data,
            logits=rows.wanted.ctypes.data,
        )
        status = self._library.llama_decode(self._pointer, batch)
        if status == _NO_ROOM:
            raise NoRoomError
        if status:
            raise RuntimeError(f"llama.cpp failed with {status} ({self._library.failures()})")
        wanted = np.flatnonzero(rows.wanted)
        logits = np.empty((len(wanted), self._vocabulary), np.float32)
        for row, place in zip(logits, wanted.tolist(), strict=True):
            address = self._library.llama_get_logits_ith(self._pointer, place)
            ctypes.memmove(row.ctypes.data, address, row.nbytes)
        return logits
