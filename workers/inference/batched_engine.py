"""The engine: a runner's arithmetic, scheduled in batches, with what was computed kept."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

from shammah.errors import ShammahError
from workers.inference.checkpoint import Checkpoint
from workers.inference.engine import (
    EngineFacts,
    LoadObserver,
    LoadSettings,
    SequenceRequest,
    StepResult,
)
from workers.inference.memory import check_context, is_out_of_memory, kv_budget
from workers.inference.runner import Logits, Runner
from workers.inference.sampler import Sampler
from workers.inference.scheduler import Plan, Scheduler, Sequence
from workers.inference.slots import Slots

log = logging.getLogger(__name__)


class BatchedEngine:
    """See `workers.inference.engine.Engine`.

    Args:
        runner: computes.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._scheduler = Scheduler()
        self._samplers: dict[str, Sampler] = {}
        self._slots = Slots(0, 0, reuses=False)

    @property
    def stages(self) -> tuple[str, ...]:
        return self._runner.stages

    @property
    def active(self) -> int:
        return len(self._scheduler.waiting) + len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        return len(self._scheduler.waiting)

    def prepare(self) -> None:
        self._runner.prepare()

    def load(
        self, checkpoint: Checkpoint, settings: LoadSettings, observer: LoadObserver
    ) -> EngineFacts:
        facts = self._runner.load(checkpoint, settings, observer)
        wanted = min(checkpoint.context_length, settings.context_length or sys.maxsize)
        budget = kv_budget(self._runner, settings.kv_memory)
        capacity = min(wanted, budget)
        check_context(capacity, wanted, self._runner)
        limits = self._runner.limits
        slots = limits.batch if limits.lazy else max(1, min(limits.batch, budget // capacity))
        self._runner.reserve(slots, capacity)
        self._slots = Slots(slots, budget, reuses=limits.reuses)
        return replace(facts, context_length=capacity)

    # --- sequences ------------------------------------------------------------------------

    def submit(self, request: SequenceRequest) -> None:
        self._scheduler.add(request)
        self._samplers[request.request_id] = Sampler(request.sampling, request.prompt)

    def cancel(self, request_id: str) -> None:
        sequence = self._scheduler.find(request_id)
        if sequence is not None:
            self._end(sequence)

    def step(self) -> list[StepResult]:
        self._admit()
        limits = self._runner.limits
        plan = self._scheduler.plan(limits.chunk, limits.shared_chunk)
        results = self._decode(plan)
        if plan.prefill is not None:
            results.append(self._prefill(plan.prefill, plan.chunk))
        return results

    def _admit(self) -> None:
        """Give slots to those who wait, for as long as there are some."""
        while (sequence := self._scheduler.next_waiting()) is not None:
            request = sequence.request
            place = self._slots.place(request.request_id, request.prompt, sequence.length)
            if place is None:
                return
            if place.copy_from is not None:
                self._runner.copy(place.copy_from, place.slot, place.reused)
            for slot in place.released:
                self._runner.release(slot)
            self._scheduler.start(sequence, place.slot, place.reused)

    def _prefill(self, sequence: Sequence, chunk: int) -> StepResult:
        start = sequence.computed
        tokens = sequence.request.prompt[start : start + chunk]
        try:
            logits = self._runner.prefill(sequence.slot, start, tokens)
        except Exception as error:
            return self._fail(sequence, error)
        self._slots.extend(sequence.slot, tokens)
        sequence.computed += len(tokens)
        reused = sequence.reused if start == sequence.reused else 0
        if sequence.prefilling:
            return StepResult(sequence.request.request_id, len(tokens), reused=reused)
        return self._choose(sequence, logits, len(tokens), reused)

    def _decode(self, plan: Plan) -> list[StepResult]:
        """One token for each; if the batch fails, each alone, so that one cannot fail all."""
        if not plan.decode:
            return []
        slots = [one.slot for one in plan.decode]
        tokens = [one.last for one in plan.decode]
        try:
            rows = self._runner.decode(slots, [self._slots.held(slot) for slot in slots], tokens)
        except Exception as error:
            if len(plan.decode) == 1:
                return [self._fail(plan.decode[0], error)]
            log.exception("a batch failed; each of it is tried alone")
            alone = [Plan(None, 0, (one,)) for one in plan.decode]
            return [result for single in alone for result in self._decode(single)]
        results = []
        for sequence, row in zip(plan.decode, rows, strict=True):
            self._slots.extend(sequence.slot, (sequence.last,))
            results.append(self._choose(sequence, row, 0, 0))
        return results

    def _choose(
        self, sequence: Sequence, logits: Logits, prefilled: int, reused: int
    ) -> StepResult:
        request = sequence.request
        token = sequence.last = self._samplers[request.request_id].choose(logits)
        sequence.generated += 1
        stopped = token in request.stop_ids
        ended = sequence.generated >= request.max_new_tokens
        if stopped or ended:
            self._end(sequence)
        return StepResult(
            request.request_id,
            prefilled,
            1,
            () if stopped else (token,),
            "stop" if stopped else "length" if ended else None,
            reused=reused,
        )

    def _fail(self, sequence: Sequence, error: Exception) -> StepResult:
        log.error("a sequence failed", exc_info=error)
        self._slots.forget(sequence.slot)
        self._end(sequence)
        return StepResult(sequence.request.request_id, failure=_failure(error))

    def _end(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        del self._samplers[sequence.request.request_id]
        if sequence.slot >= 0:
            self._slots.free(sequence.slot)


def _failure(error: Exception) -> ShammahError:
    """What a failed step means to the person who asked."""
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
