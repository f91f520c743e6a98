"""The runner for GGUF files: the weights as they are in the file, computed by llama.cpp."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from shammah.errors import ShammahError
from shammah.models.catalogue import FETCH_AGAIN
from workers.inference.cores import usable_cores
from workers.inference.engine import EngineFacts, LoadObserver, LoadSettings
from workers.inference.engines.llamacpp.context import OUTPUTS, PASS, Context, NoRoomError, Rows
from workers.inference.engines.llamacpp.library import open_library
from workers.inference.engines.llamacpp.models import Model, read_model
from workers.inference.engines.llamacpp.spec import free_memory, place
from workers.inference.packages.adapter_file import Adapter, unsupported
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.runner import Logits, RunnerLimits, Span

log = logging.getLogger(__name__)

LIMITS = RunnerLimits(batch=8, chunk=256, shared_chunk=64)

_FIRST_CELLS = 4096
"""Of a context; llama.cpp takes the memory for all of them at once."""

_WARM_UP = 17

_DIVISORS = ("layer_norm_rms_epsilon", "layer_norm_epsilon", "group_norm_epsilon")
"""Numbers of a file's header that keep llama.cpp from dividing by nothing."""


class LlamaCppRunner:
    """See `workers.inference.runner.Runner`.

    The context grows with the conversations: llama.cpp takes a context's memory when it makes it,
    and few conversations are as long as they may be.
    """

    engine = "llamacpp"
    stages = ("load llama.cpp", "read weights", "warm up")

    _model: Model
    _context: Context

    def __init__(self, threads: int = 0) -> None:
        """``threads``: 0 for one a core."""
        self.limits = LIMITS
        self._threads = threads or usable_cores()
        self._device = "cpu"
        self._bytes_per_token = 1
        self._slots, self._most = 1, PASS

    # --- loading --------------------------------------------------------------------------

    def prepare(self) -> None:
        open_library()

    def load(
        self, checkpoint: Checkpoint, settings: LoadSettings, observer: LoadObserver
    ) -> EngineFacts:
        placement = place(checkpoint, settings)
        self._device = placement.device
        observer.stage("load llama.cpp")
        library = open_library()
        observer.stage("read weights")
        model = self._model = read_model(
            library,
            checkpoint.weights,
            layers_on_gpu=0 if placement.device == "cpu" else -1,
            advance=observer.advance,
        )
        _check_kind(model)
        recurrent = library.llama_model_is_recurrent(model.pointer)
        if recurrent or library.llama_model_is_hybrid(model.pointer):
            self.limits = replace(LIMITS, reuses=False)
        observer.stage("warm up")
        self._warm_up()
        form = library.llama_ftype_name(library.llama_model_ftype(model.pointer)).decode()
        log.info("%s in %s, %d threads", checkpoint.architecture, form, self._threads)
        return EngineFacts(self.engine, placement.device, form, why=placement.why)

    def _warm_up(self) -> None:
        """Compute something, which shows how many bytes a token's keys and values have.

        Raises:
            ShammahError: ``model_corrupt``.
        """
        self.reserve(1, PASS)
        first = self.forward([Span(0, 0, [0])])[0]
        before = self._context.slot_bytes(0)
        last = self.forward([Span(0, 1, [0] * _WARM_UP)])[0]
        self._bytes_per_token = (self._context.slot_bytes(0) - before) // _WARM_UP
        if np.isnan([first, last]).any():
            raise ShammahError(
                "model_corrupt", "The model's weights give numbers that are none.", FETCH_AGAIN
            )

    # --- memory ---------------------------------------------------------------------------

    def kv_bytes_per_token(self) -> int:
        return max(1, self._bytes_per_token)

    def free_bytes(self) -> int:
        return free_memory(self._device)

    def reserve(self, slots: int, capacity: int) -> None:
        self._slots, self._most = slots, slots * capacity
        first = max(_FIRST_CELLS, _first_cells(self._model))
        self._context = self._make_context(max(PASS, min(capacity, first)))

    def _make_context(self, cells: int) -> Context:
        return Context(self._model, slots=self._slots, cells=cells, threads=self._threads)

    def _grow(self, tokens: int) -> None:
        """Have room for so many tokens more, and for some time."""
        before = self._context
        cells = min(before.cells + max(before.cells // 2, tokens), self._most)
        log.info("the context grows from %d to %d tokens", before.cells, cells)
        state = before.state()
        before.close()
        self._context = self._make_context(cells)
        self._context.restore(state)

    def release(self, slot: int) -> None:
        self._context.cut(slot, 0)

    def copy(self, source: int, target: int, length: int) -> None:
        self._context.copy(source, target, length)

    # --- adapters -------------------------------------------------------------------------

    def kv_access(self) -> None:
        return None

    def add_adapter(self, adapter: Adapter) -> int:
        why = "the llamacpp engine computes the weights of a GGUF file without any"
        raise unsupported(adapter.key, why)

    def drop_adapter(self, key: str) -> None:
        """There is none."""

    # --- computing ------------------------------------------------------------------------

    def forward(self, spans: Sequence[Span]) -> list[Logits]:
        for span in spans:
            self._context.cut(span.slot, span.start)
        logits = np.concatenate([self._compute(rows) for rows in passes(spans)])
        ends = np.cumsum([min(span.wanted, len(span.tokens)) for span in spans])
        return np.split(logits, ends[:-1])

    def _compute(self, rows: Rows) -> Logits:
        try:
            return self._context.compute(rows)
        except NoRoomError:
            if self._context.cells >= self._most:
                raise MemoryError("the context is full") from None
        self._grow(len(rows.tokens))
        return self._context.compute(rows)


def passes(spans: Sequence[Span]) -> Iterator[Rows]:
    """The tokens of ``spans`` in their order, in as few parts as llama.cpp can compute."""
    tokens = np.concatenate([span.tokens for span in spans]).astype(np.int32)
    lengths = [len(span.tokens) for span in spans]
    starts = [np.arange(span.start, span.start + len(span.tokens)) for span in spans]
    wanted = [np.arange(len(span.tokens)) >= len(span.tokens) - span.wanted for span in spans]
    rows = Rows(
        tokens,
        np.concatenate(starts).astype(np.int32),
        np.repeat([span.slot for span in spans], lengths).astype(np.int32),
        np.concatenate(wanted).astype(np.int8),
    )
    outputs = np.cumsum(rows.wanted)
    begin = 0
    while begin < len(tokens):
        passed = outputs[begin] - rows.wanted[begin]
        fit = int(np.searchsorted(outputs, passed + OUTPUTS, side="right"))
        end = min(begin + PASS, fit, len(tokens))
        yield rows.part(begin, end)
        begin = end


def _check_kind(model: Model) -> None:
    """
    Raises:
        ShammahError: ``model_unsupported`` or ``model_corrupt``.
    """
    library = model.library
    for name in _DIVISORS:
        key = f"{model.value('general.architecture')}.attention.{name}"
        if (value := model.value(key)) and not float(value) >= 0:  # llama.cpp would end the process
            raise ShammahError("model_corrupt", f"The file gives {value} as {key}.", FETCH_AGAIN)
    decodes = library.llama_model_has_decoder(model.pointer)
    encodes = library.llama_model_has_encoder(model.pointer)
    if not decodes or encodes or library.llama_model_is_diffusion(model.pointer):
        raise ShammahError(
            "model_unsupported",
            "This GGUF file holds no model that writes one token after another.",
            "Choose another model with --model.",
        )


def _first_cells(model: Model) -> int:
    """Cells from which on a longer context changes no result.

    Some models (LongRoPE) have other rotations for contexts longer than those they were trained
    with first, and llama.cpp goes by the context's size: it must not pass that length later.
    """
    prefix = f"{model.value('general.architecture')}.rope.scaling"
    length = model.value(f"{prefix}.original_context_length")
    if model.value(f"{prefix}.type") in ("linear", "yarn") or not length.isdecimal():
        return 0
    return int(length) + 1
