"""The engine: a runner's arithmetic, scheduled in batches, with what was computed kept."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from shammah.errors import ShammahError
from workers.inference.engine import (
    EngineFacts,
    LoadObserver,
    LoadSettings,
    SequenceRequest,
    StepResult,
)
from workers.inference.kept_conversations import (
    InterruptedWriteError,
    KeptConversations,
    open_kept,
)
from workers.inference.memory import check_context, is_out_of_memory, kv_budget
from workers.inference.packages.adapter_file import Adapter
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.runner import Rows, Runner, Span
from workers.inference.scheduling.adapter_cache import BUDGET_BYTES, AdapterCache
from workers.inference.scheduling.sampler import Sampler
from workers.inference.scheduling.scheduler import Plan, Scheduler, Sequence
from workers.inference.scheduling.slots import Slots
from workers.inference.scheduling.speculation import Speculation

log = logging.getLogger(__name__)


class BatchedEngine:
    """See `workers.inference.engine.Engine`.

    Args:
        runner: computes.
        speculates: whether it may compute guesses, where that changes no answer.
        clock: seconds, to learn what passes cost.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        speculates: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._runner = runner
        self._speculates = speculates
        self._clock = clock
        self._scheduler = Scheduler()
        self._samplers: dict[str, Sampler] = {}
        self._slots = Slots(0, 0, reuses=False)
        self._speculation = Speculation(0)
        self._adapters = AdapterCache(BUDGET_BYTES, runner.drop_adapter)
        self._kept: KeptConversations | None = None

    @property
    def name(self) -> str:
        return self._runner.engine

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
        check_context(capacity, wanted, self._runner, settings.kv_memory)
        limits = self._runner.limits
        slots = limits.batch + 1  # the last is for a client that has none (`Scheduler`)
        if not limits.lazy:
            slots = max(1, min(slots, budget // capacity))
        self._runner.reserve(slots, capacity)
        self._slots = Slots(slots, budget, reuses=limits.reuses)
        self._speculation = Speculation(limits.batch if self._speculates and limits.exact else 0)
        if limits.reuses:
            self._kept = open_kept(settings, checkpoint, self._runner.kv_access())
        return replace(facts, context_length=capacity)

    def holds(self, adapter: str) -> bool:
        return self._adapters.holds(adapter)

    def add_adapter(self, adapter: Adapter) -> None:
        size = self._runner.add_adapter(adapter)
        self._adapters.add(adapter.key, size, self._scheduler.adapters())

    # --- sequences ------------------------------------------------------------------------

    def submit(self, request: SequenceRequest) -> None:
        if request.adapter:
            self._adapters.use(request.adapter)
        self._samplers[request.request_id] = Sampler(
            request.sampling, request.prompt, request.constraint
        )
        self._scheduler.add(request)

    def cancel(self, request_id: str) -> None:
        sequence = self._scheduler.find(request_id)
        if sequence is not None:
            self._end(sequence)

    def step(self) -> list[StepResult]:
        failed = list(self._admit())
        limits = self._runner.limits
        plan = self._scheduler.plan(limits.batch, limits.chunk, limits.shared_chunk)
        return failed + self._compute(plan)

    def _admit(self) -> Iterator[StepResult]:
        """Give slots to those who wait, for as long as there are some; which of them failed."""
        batch = self._runner.limits.batch
        while (sequence := self._scheduler.next_waiting(batch)) is not None:
            request = sequence.request
            place = self._slots.place(
                request.request_id,
                request.prompt,
                sequence.length,
                adapter=request.adapter,
                conversation=request.conversation,
            )
            if place is None:
                return
            self._scheduler.start(sequence, place.slot, place.reused)
            try:
                if place.copy_from is not None:
                    self._runner.copy(place.copy_from, place.slot, place.reused)
                for slot in place.released:
                    self._runner.release(slot)
                self._restore(sequence)
            except Exception as error:
                yield self._fail(sequence, error)

    def _restore(self, sequence: Sequence) -> None:
        """Read what the disk has more of a sequence than its slot."""
        kept, request, held = self._kept, sequence.request, sequence.reused
        found = kept and kept.find(request.prompt, request.adapter, held)
        if kept and found and kept.read(found, sequence.slot, held, request.adapter):
            self._slots.extend(sequence.slot, request.prompt[held : found.shared])
            sequence.computed = sequence.reused = found.shared
            sequence.restored = found.shared - held

    def keep(self, enough: Callable[[], bool], *, last: bool) -> None:
        with contextlib.suppress(InterruptedWriteError):
            for slot in self._slots.unkept():
                if self._kept is not None:
                    self._kept.write(slot, enough, last=last)
                slot.kept = True

    def _compute(self, plan: Plan) -> list[StepResult]:
        """Do a step in one pass. If that fails, each of its sequences alone, so that one cannot
        fail all."""
        every = (*plan.decode, *filter(None, (plan.prefill,)))
        if not every:
            return []
        try:
            guesses = self._speculation.guesses(plan.decode, len(every) - len(plan.decode))
            spans = [self._next(*one) for one in zip(plan.decode, guesses, strict=True)]
            if plan.prefill is not None:
                spans.append(self._chunk(plan.prefill, plan.chunk))
            began = self._clock()
            found = self._runner.forward(spans)
        except Exception as error:
            if len(every) == 1:
                return [self._fail(every[0], error)]
            log.exception("a batch failed; trying each of its sequences alone")
            alone = [Plan(None, 0, (one,)) for one in plan.decode]
            if plan.prefill is not None:
                alone.append(Plan(plan.prefill, plan.chunk, ()))
            return [result for single in alone for result in self._compute(single)]
        if plan.prefill is None:
            self._speculation.costs.learn(sum(map(len, found)), self._clock() - began)
        taken = [*guesses, *([[]] if plan.prefill is not None else [])]
        return [
            self._take(sequence, span, rows, some)
            for sequence, span, rows, some in zip(every, spans, found, taken, strict=True)
        ]

    def _next(self, sequence: Sequence, guesses: list[int]) -> Span:
        """The last token of a sequence, and guesses of those that follow."""
        return Span(
            sequence.slot,
            self._slots.held(sequence.slot),
            (sequence.last, *guesses),
            sequence.request.adapter,
            wanted=1 + len(guesses),
            top=self._samplers[sequence.request.request_id].top,
        )

    def _chunk(self, sequence: Sequence, chunk: int) -> Span:
        """The next tokens of a prompt. Only the last of all is followed by an answer."""
        start, prompt = sequence.computed, sequence.request.prompt
        tokens = prompt[start : start + chunk]
        return Span(
            sequence.slot,
            start,
            tokens,
            sequence.request.adapter,
            wanted=int(start + len(tokens) == len(prompt)),
            top=self._samplers[sequence.request.request_id].top,
        )

    def _take(self, sequence: Sequence, span: Span, rows: Rows, guesses: list[int]) -> StepResult:
        """Go on with what was computed of a sequence."""
        try:
            if not sequence.prefilling:
                self._slots.extend(sequence.slot, (sequence.last,))
                nothing = StepResult(sequence.request.request_id)
                return self._choose(sequence, rows, guesses, nothing)
            count = len(span.tokens)
            self._slots.extend(sequence.slot, span.tokens)
            sequence.computed += count
            first = span.start == sequence.reused
            reused, restored = (sequence.reused, sequence.restored) if first else (0, 0)
            said = StepResult(sequence.request.request_id, count, reused=reused, restored=restored)
            return self._choose(sequence, rows, [], said) if span.wanted else said
        except Exception as error:
            return self._fail(sequence, error)

    def _choose(
        self,
        sequence: Sequence,
        rows: Rows,
        guesses: list[int],
        computed: StepResult,
    ) -> StepResult:
        """The tokens that follow: from the first row, and from each after a guess that is right.
        They are added to what was ``computed`` of the prompt.

        What was computed of wrong guesses is beyond what the slot holds, and is written over.
        """
        name = sequence.request.request_id
        chosen, finish = list[int](), None
        for row, guess in zip(rows, (*guesses, None), strict=True):
            chosen.append(self._samplers[name].choose(row))
            finish = sequence.take(chosen[-1])
            if finish is not None or chosen[-1] != guess:
                break
            self._slots.extend(sequence.slot, chosen[-1:])
        self._speculation.chosen(sequence, chosen)
        if finish is not None:
            self._end(sequence)
        shown = chosen[:-1] if finish == "stop" else chosen
        return replace(
            computed, generated=len(chosen), token_ids=tuple(shown), finish_reason=finish
        )

    def _fail(self, sequence: Sequence, error: Exception) -> StepResult:
        log.error("a sequence failed", exc_info=error)
        self._slots.forget(sequence.slot)
        self._runner.release(sequence.slot)
        self._end(sequence)
        return StepResult(sequence.request.request_id, failure=_failure(error))

    def _end(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        del self._samplers[sequence.request.request_id]
        self._speculation.forget(sequence.request.request_id)
        if sequence.slot >= 0:
            self._slots.free(sequence.slot)


def _failure(error: Exception) -> ShammahError:
    """What a failed step means to the person who asked."""
    if isinstance(error, ShammahError):
        return error
    if is_out_of_memory(error):
        return ShammahError(
            "out_of_memory",
            "Not enough memory for a conversation of this length.",
            "Start a new conversation, or use a smaller model.",
        )
    return ShammahError(
        "generation_failed",
        f"The local model failed: {type(error).__name__}: {error}",
        "Ask again. If it happens again, see the inference worker's log.",
    )
