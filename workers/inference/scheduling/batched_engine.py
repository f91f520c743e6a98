"""The engine: a runner's arithmetic, scheduled in batches, with what was computed kept."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from shammah.errors import ShammahError
from workers.inference.engine import (
    EngineFacts,
    LoadObserver,
    LoadSettings,
    SequenceRequest,
    StepResult,
)
from workers.inference.memory import check_context, is_out_of_memory, kv_budget
from workers.inference.packages.adapter_file import Adapter
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.runner import Logits, Runner
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
        slots = limits.batch if limits.lazy else max(1, min(limits.batch, budget // capacity))
        self._runner.reserve(slots, capacity)
        self._slots = Slots(slots, budget, reuses=limits.reuses)
        self._speculation = Speculation(limits.batch if self._speculates and limits.exact else 0)
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
        self._samplers[request.request_id] = Sampler(request.sampling, request.prompt)
        self._scheduler.add(request)

    def cancel(self, request_id: str) -> None:
        sequence = self._scheduler.find(request_id)
        if sequence is not None:
            self._end(sequence)

    def step(self) -> list[StepResult]:
        results = list(self._admit())
        limits = self._runner.limits
        plan = self._scheduler.plan(limits.chunk, limits.shared_chunk)
        results += self._decode(plan)
        if plan.prefill is not None:
            results.append(self._prefill(plan.prefill, plan.chunk))
        return results

    def _admit(self) -> Iterator[StepResult]:
        """Give slots to those who wait, for as long as there are some; which of them failed."""
        while (sequence := self._scheduler.next_waiting()) is not None:
            request = sequence.request
            place = self._slots.place(
                request.request_id, request.prompt, sequence.length, request.adapter
            )
            if place is None:
                return
            self._scheduler.start(sequence, place.slot, place.reused)
            try:
                if place.copy_from is not None:
                    self._runner.copy(place.copy_from, place.slot, place.reused)
                for slot in place.released:
                    self._runner.release(slot)
            except Exception as error:
                yield self._fail(sequence, error)

    def _prefill(self, sequence: Sequence, chunk: int) -> StepResult:
        start = sequence.computed
        tokens = sequence.request.prompt[start : start + chunk]
        try:
            logits = self._runner.prefill(sequence.slot, start, tokens, sequence.request.adapter)
            self._slots.extend(sequence.slot, tokens)
            sequence.computed += len(tokens)
            reused = sequence.reused if start == sequence.reused else 0
            if sequence.prefilling:
                return StepResult(sequence.request.request_id, len(tokens), reused=reused)
            return self._choose(sequence, [logits], [], len(tokens), reused)
        except Exception as error:
            return self._fail(sequence, error)

    def _decode(self, plan: Plan) -> list[StepResult]:
        """A token for each, and more where guesses were right.

        If the batch fails, each alone, so that one cannot fail all.
        """
        if not plan.decode:
            return []
        try:
            guesses = self._speculation.guesses(plan.decode)
            rows = self._compute(plan.decode, guesses)
        except Exception as error:
            if len(plan.decode) == 1:
                return [self._fail(plan.decode[0], error)]
            log.exception("a batch failed; trying each of its sequences alone")
            alone = [Plan(None, 0, (one,)) for one in plan.decode]
            return [result for single in alone for result in self._decode(single)]
        results, taken = [], 0
        for sequence, some in zip(plan.decode, guesses, strict=True):
            own = rows[taken : taken + 1 + len(some)]
            taken += len(own)
            try:
                self._slots.extend(sequence.slot, (sequence.last,))
                results.append(self._choose(sequence, own, some))
            except Exception as error:
                results.append(self._fail(sequence, error))
        return results

    def _compute(self, sequences: tuple[Sequence, ...], guesses: list[list[int]]) -> Logits:
        """The logits after the last token of each sequence and after each guess of the next."""
        slots, positions, tokens = list[int](), list[int](), list[int]()
        adapters = list[str]()
        for sequence, some in zip(sequences, guesses, strict=True):
            held = self._slots.held(sequence.slot)
            slots += [sequence.slot] * (1 + len(some))
            positions += range(held, held + 1 + len(some))
            tokens += [sequence.last, *some]
            adapters += [sequence.request.adapter] * (1 + len(some))
        began = self._clock()
        rows = self._runner.decode(slots, positions, tokens, adapters if any(adapters) else ())
        self._speculation.costs.learn(len(tokens), self._clock() - began)
        return rows

    def _choose(
        self,
        sequence: Sequence,
        rows: Iterable[Logits],
        guesses: list[int],
        prefilled: int = 0,
        reused: int = 0,
    ) -> StepResult:
        """The tokens that follow: from the first row, and from each after a guess that is right.

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
        return StepResult(name, prefilled, len(chosen), tuple(shown), finish, reused=reused)

    def _fail(self, sequence: Sequence, error: Exception) -> StepResult:
        log.error("a sequence failed", exc_info=error)
        self._slots.forget(sequence.slot)
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
