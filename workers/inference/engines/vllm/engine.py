"""Delegates to vLLM in this process: its scheduling, its paged memory, its kernels, its sampler.

Only tokens go in and come out: templates, stop strings and text are the same as for every engine.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Callable
from typing import Any

from shammah.errors import ShammahError, schema_not_enforced
from shammah.models.catalogue import GIB
from shammah.supervision.oom_record import CLOSE_OTHERS
from workers.environment import prepare_libraries
from workers.inference.engine import (
    EngineFacts,
    LoadObserver,
    LoadSettings,
    SequenceRequest,
    StepResult,
)
from workers.inference.engines.vllm.spec import place
from workers.inference.memory import is_out_of_memory
from workers.inference.packages.adapter_file import Adapter, unsupported
from workers.inference.packages.checkpoint import Checkpoint
from workers.model_classes import first_line

log = logging.getLogger(__name__)

CONVERSATIONS = 16
"""At once; more wait."""

SHARE = 0.9
"""Of the memory that is free, for weights, keys and values."""

_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",  # it would tell its authors what runs here
    "DO_NOT_TRACK": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # this is a process of its own already
}


class VllmEngine:
    """See `workers.inference.engine.Engine`."""

    name = "vllm"
    stages = ("import vllm", "read weights")

    def __init__(self) -> None:
        self._engine: Any = None
        self._requests: dict[str, SequenceRequest] = {}
        self._begun: set[str] = set()
        self._refused: list[StepResult] = []

    @property
    def active(self) -> int:
        return len(self._requests) + len(self._refused)

    @property
    def waiting(self) -> int:
        return len(self._requests) - len(self._begun)

    def prepare(self) -> None:
        with contextlib.suppress(Exception):  # `load` says it, and another engine follows
            _import()

    def load(
        self, checkpoint: Checkpoint, settings: LoadSettings, observer: LoadObserver
    ) -> EngineFacts:
        observer.stage(self.stages[0])
        vllm = _import()
        form = place(checkpoint, settings)
        observer.stage(self.stages[1])
        context = min(checkpoint.context_length, settings.context_length or 2**31)
        options = {"kv_cache_memory_bytes": int(settings.kv_memory * GIB)}
        arguments = vllm.EngineArgs(
            model=str(checkpoint.directory),
            skip_tokenizer_init=True,
            dtype=form.dtype,
            max_model_len=context,
            max_num_seqs=CONVERSATIONS,
            gpu_memory_utilization=SHARE * form.free / _total_memory(),
            generation_config="vllm",  # what the authors recommend is in each request
            **(options if settings.kv_memory else {}),
        )
        try:
            self._engine = vllm.LLMEngine.from_engine_args(arguments)
        except Exception as error:
            raise _explained(error) from error
        return form.facts(self.name, context)

    # --- adapters -------------------------------------------------------------------------

    def holds(self, adapter: str) -> bool:
        return False

    def add_adapter(self, adapter: Adapter) -> None:
        raise unsupported(adapter.name, "the vllm engine takes no adapters")

    # --- sequences ------------------------------------------------------------------------

    def submit(self, request: SequenceRequest) -> None:
        if request.constraint is not None:
            raise schema_not_enforced("The vllm engine")
        vllm, plan = _import(), request.sampling
        parameters = vllm.SamplingParams(
            temperature=plan.temperature,
            top_p=plan.top_p,
            top_k=plan.top_k or -1,
            repetition_penalty=plan.repetition_penalty,
            min_p=plan.min_p,
            presence_penalty=plan.presence_penalty,
            seed=plan.seed,
            max_tokens=request.max_new_tokens,
            stop_token_ids=sorted(request.stop_ids),
            ignore_eos=True,  # the stop tokens are all that end it
            detokenize=False,
            output_kind=vllm.sampling_params.RequestOutputKind.DELTA,
        )
        prompt = {"prompt_token_ids": list(request.prompt)}
        try:
            self._engine.add_request(request.request_id, prompt, parameters)
        except Exception as error:
            self._refused.append(_failed(request.request_id, error))
            return
        self._requests[request.request_id] = request

    def step(self) -> list[StepResult]:
        results, self._refused = self._refused, []
        if not self._requests:
            return results
        try:
            outputs = self._engine.step()
        except Exception as error:
            log.exception("vLLM failed")
            results += [_failed(name, error) for name in self._requests]
            self._requests.clear()
            self._begun.clear()
            return results
        for output in outputs:
            request = self._requests.get(output.request_id)
            if request is not None:  # not cancelled
                results.append(self._take(request, output))
        return results

    def cancel(self, request_id: str) -> None:
        self._refused = [one for one in self._refused if one.request_id != request_id]
        if self._requests.pop(request_id, None) is not None:
            self._begun.discard(request_id)
            self._engine.abort_request([request_id])

    def keep(self, enough: Callable[[], bool], *, last: bool) -> None:
        """It does not give its keys and values away."""

    def _take(self, request: SequenceRequest, output: Any) -> StepResult:
        name, [completion] = request.request_id, output.outputs
        reused = prefilled = 0
        if name not in self._begun:
            self._begun.add(name)
            reused = output.num_cached_tokens or 0
            prefilled = len(request.prompt) - reused
        if output.finished:
            del self._requests[name]
            self._begun.discard(name)
        finish = completion.finish_reason
        if finish not in (None, "stop", "length"):
            return _failed(name, RuntimeError(f"it ended with {finish}"))
        chosen = tuple(completion.token_ids)
        shown = chosen[:-1] if chosen and chosen[-1] in request.stop_ids else chosen
        return StepResult(name, prefilled, len(chosen), shown, finish, reused=reused)


def _import() -> Any:
    prepare_libraries()
    os.environ.update(_ENVIRONMENT)
    return importlib.import_module("vllm")


def _total_memory() -> int:
    import torch

    return int(torch.cuda.mem_get_info()[1])


def _explained(error: Exception) -> ShammahError:
    """Return what a failed load means; vLLM has one type of error for most reasons."""
    text = first_line(error)
    if is_out_of_memory(error) or "KV cache" in str(error) or "memory" in str(error).lower():
        return ShammahError("out_of_memory", f"vLLM: {text}", CLOSE_OTHERS)
    return ShammahError("model_unsupported", f"vLLM: {text}", "Set inference.engine to auto.")


def _failed(name: str, error: Exception) -> StepResult:
    failure = ShammahError(
        "generation_failed",
        f"vLLM failed: {type(error).__name__}: {first_line(error)}",
        "Ask again. If it happens again, set inference.engine to auto.",
    )
    return StepResult(name, failure=failure)
