"""The engine that serves every architecture and device, through transformers.

The reference for every other engine: it computes what ``model.generate`` computes, but in
steps, so that a cancel takes effect at once and several sequences advance in turn.
"""

from __future__ import annotations

import inspect
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from shammah.errors import ShammahError
from workers.inference.checkpoint import Checkpoint
from workers.inference.engine import (
    EngineFacts,
    LoadObserver,
    LoadSettings,
    SequenceRequest,
    StepResult,
)
from workers.inference.environment import prepare_libraries

if TYPE_CHECKING:
    import torch

    from workers.inference.token_chooser import TokenChooser

log = logging.getLogger(__name__)

PREFILL_CHUNK = {"cpu": 256, "mps": 1024, "cuda": 2048}
"""Prompt tokens in one step: enough to keep the device busy, few enough that a cancel, which
waits for the step in hand, is not felt."""

_WARM_UP = 8


class _Sequence:
    """One prompt under way: what it has computed and chosen."""

    def __init__(self, request: SequenceRequest, cache: Any, chooser: TokenChooser) -> None:
        self.request = request
        self.cache = cache
        self.chooser = chooser
        self.prefilled = 0
        self.generated = 0
        self.last = 0

    def pending(self, chunk: int) -> tuple[int, ...]:
        """The tokens that the next step computes: a chunk of the prompt, or the last one."""
        prompt = self.request.prompt
        if self.prefilled < len(prompt):
            return prompt[self.prefilled : self.prefilled + chunk]
        return (self.last,)


class TransformersEngine:
    """See `workers.inference.engine.Engine`. One sequence advances in each step, in turn."""

    stages = ("import torch", "import transformers", "read weights", "warm up")

    def __init__(self) -> None:
        self._turns: deque[_Sequence] = deque()
        self._model: Any = None
        self._device = "cpu"
        self._forward_options: dict[str, Any] = {}

    @property
    def active(self) -> int:
        return len(self._turns)

    # --- loading --------------------------------------------------------------------------

    def prepare(self) -> None:
        prepare_libraries()
        import transformers.modeling_utils  # noqa: F401

        import workers.inference.weights  # noqa: F401 - torch comes with it

    def load(
        self, checkpoint: Checkpoint, settings: LoadSettings, observer: LoadObserver
    ) -> EngineFacts:
        prepare_libraries()
        observer.stage("import torch")
        from workers.inference import placement

        self._device = placement.choose_device(settings.device)
        free = placement.free_memory(self._device)
        dtype = placement.choose_dtype(settings.dtype, self._device, checkpoint.parameters, free)
        threads = placement.limit_threads()
        observer.stage("import transformers")
        from workers.inference import weights

        model_class = weights.find_class(checkpoint)
        observer.stage("read weights")
        self._model = weights.read_weights(model_class, checkpoint, dtype, self._device, observer)
        if "logits_to_keep" in inspect.signature(model_class.forward).parameters:
            self._forward_options["logits_to_keep"] = 1
        observer.stage("warm up")
        self._warm_up()
        name = str(dtype).removeprefix("torch.")
        log.info("%s as %s on %s, %d threads", model_class.__name__, name, self._device, threads)
        return EngineFacts("transformers", self._device, name)

    def _warm_up(self) -> None:
        """Compute something once: first calls allocate, choose kernels and start threads."""
        cache = self._new_cache()
        self._forward(tuple(range(_WARM_UP)), cache)
        self._forward((0,), cache)

    # --- sequences ------------------------------------------------------------------------

    def submit(self, request: SequenceRequest) -> None:
        from workers.inference.token_chooser import TokenChooser

        chooser = TokenChooser(request.sampling, request.prompt, self._device)
        self._turns.append(_Sequence(request, self._new_cache(), chooser))

    def cancel(self, request_id: str) -> None:
        self._turns = deque(s for s in self._turns if s.request.request_id != request_id)

    def step(self) -> list[StepResult]:
        sequence = self._turns.popleft()
        try:
            result = self._advance(sequence)
        except Exception as error:
            log.exception("a sequence failed")
            failure = _failure(error)
            return [StepResult(sequence.request.request_id, failure=failure)]
        if result.finish_reason is None:
            self._turns.append(sequence)
        return [result]

    def _advance(self, sequence: _Sequence) -> StepResult:
        request = sequence.request
        tokens = sequence.pending(PREFILL_CHUNK[self._device])
        logits = self._forward(tokens, sequence.cache)
        prefilled = 0
        if sequence.prefilled < len(request.prompt):
            prefilled = len(tokens)
            sequence.prefilled += prefilled
            if sequence.prefilled < len(request.prompt):
                return StepResult(request.request_id, prefilled)
        token = sequence.last = sequence.chooser.choose(logits)
        sequence.generated += 1
        if token in request.stop_ids:
            return StepResult(request.request_id, prefilled, 1, (), "stop")
        ended = sequence.generated >= request.max_new_tokens
        return StepResult(request.request_id, prefilled, 1, (token,), "length" if ended else None)

    def _new_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self._model.config)

    def _forward(self, tokens: tuple[int, ...], cache: Any) -> torch.Tensor:
        """Append ``tokens`` to ``cache``; the logits after the last one: (1, vocabulary)."""
        import torch

        with torch.inference_mode():
            ids = torch.tensor([tokens], device=self._device)
            output = self._model(
                input_ids=ids, past_key_values=cache, use_cache=True, **self._forward_options
            )
            logits: torch.Tensor = output.logits[:, -1]
            return logits


def _failure(error: Exception) -> ShammahError:
    """What a failed step means to the person who asked."""
    from workers.inference.weights import is_out_of_memory

    if is_out_of_memory(error):
        return ShammahError(
            "out_of_memory",
            "There is too little memory for a conversation of this length.",
            "Begin a new conversation, or use a smaller model.",
        )
    return ShammahError(
        "generation_failed",
        f"The local model failed: {type(error).__name__}: {error}",
        "Ask again; the inference worker's log file says more.",
    )
