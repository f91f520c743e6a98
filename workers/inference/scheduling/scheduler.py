"""Which sequences wait, which is next, and what the next step computes. Pure.

Continuous batching (Yu et al. 2022, "Orca"): sequences join and leave at any step. A step is at
most one chunk of one prompt and one pass for every sequence whose prompt is done, so a long
prompt delays the others by a chunk at most.

A client that has nothing running need not wait until one of another's many questions is answered:
it may start beyond what a step computes, and the newest of the busiest client pauses for it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from shammah.bus.record import record
from workers.inference.engine import FinishReason, SequenceRequest


@dataclass(slots=True, eq=False)
class Sequence:
    """One request under way: ``computed`` tokens of it are in ``slot``. Of the ``reused`` ones
    ``restored`` came from the disk."""

    request: SequenceRequest
    slot: int = -1
    computed: int = 0
    reused: int = 0
    restored: int = 0
    generated: int = 0
    last: int = 0
    turn: int = 0

    @property
    def prefilling(self) -> bool:
        return self.computed < len(self.request.prompt)

    @property
    def length(self) -> int:
        """Tokens that it may come to."""
        return len(self.request.prompt) + self.request.max_new_tokens

    def take(self, token: int) -> FinishReason | None:
        """It goes on with ``token``; why that ends it, if it does."""
        self.last = token
        self.generated += 1
        if token in self.request.stop_ids:
            return "stop"
        return "length" if self.generated >= self.request.max_new_tokens else None


@record
class Plan:
    """One step: ``prefill`` gets a chunk of ``chunk`` tokens, ``decode`` the next token each."""

    prefill: Sequence | None
    chunk: int
    decode: tuple[Sequence, ...]


@dataclass(slots=True)
class Scheduler:
    """The sequences of one engine.

    Attributes:
        waiting: have no slot yet, in the order they came.
        running: have one.
    """

    waiting: list[Sequence] = field(default_factory=list)
    running: list[Sequence] = field(default_factory=list)
    _turn: int = 0

    def add(self, request: SequenceRequest) -> None:
        self.waiting.append(Sequence(request))

    def find(self, request_id: str) -> Sequence | None:
        every = [*self.waiting, *self.running]
        return next((one for one in every if one.request.request_id == request_id), None)

    def adapters(self) -> set[str]:
        """The keys of those that are needed yet."""
        return {one.request.adapter for one in (*self.waiting, *self.running)}

    def remove(self, sequence: Sequence) -> None:
        for group in (self.waiting, self.running):
            if sequence in group:
                group.remove(sequence)

    def next_waiting(self, rows: int) -> Sequence | None:
        """The next to get a slot: of the client with the fewest running; then the first. Beyond
        ``rows``, which a step computes, only a client that has none running gets one, while
        another has several."""
        busy = self._busy()
        chosen = min(self.waiting, key=lambda one: busy[one.request.client], default=None)
        full = len(self.running) >= rows
        if chosen and full and (busy[chosen.request.client] or max(busy.values()) < 2):
            return None
        return chosen

    def start(self, sequence: Sequence, slot: int, reused: int) -> None:
        """Give it a slot that holds ``reused`` of its tokens."""
        self.waiting.remove(sequence)
        sequence.slot, sequence.computed, sequence.reused = slot, reused, reused
        self.running.append(sequence)

    def plan(self, rows: int, chunk: int, shared_chunk: int) -> Plan:
        """The next step. Prompts take turns, so that a short one overtakes a long one.

        Args:
            rows: sequences that a step computes, at most.
            chunk: prompt tokens of a step that computes nothing else.
            shared_chunk: the same while others wait for their next token.
        """
        prompts = [one for one in self.running if one.prefilling]
        decode = tuple(one for one in self.running if not one.prefilling)
        if len(decode) > (rows := rows - bool(prompts)):
            busy = self._busy()
            decode = tuple(sorted(decode, key=lambda one: busy[one.request.client])[:rows])
        if not prompts:
            return Plan(None, 0, decode)
        chosen = min(prompts, key=lambda one: one.turn)
        self._turn += 1
        chosen.turn = self._turn
        left = len(chosen.request.prompt) - chosen.computed
        return Plan(chosen, min(left, shared_chunk if decode else chunk), decode)

    def _busy(self) -> Counter[str]:
        """How many of each client are running."""
        return Counter(one.request.client for one in self.running)
