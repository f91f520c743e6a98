"""Which sequence is in which slot, and what of an earlier one can be kept. Pure.

The keys and values of a token depend on the tokens before it and the adapter alone. So a new
prompt need not be computed as far as it begins like what a slot holds for the same adapter: the
next turn of a conversation, an edited question, a common system prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from shammah.bus.record import record

COPY_FROM = 16
"""Fewer tokens are computed as fast as they are copied."""


@dataclass(slots=True)
class Slot:
    """``tokens`` are those whose keys and values it holds, computed with ``adapter`` (empty: by the
    model alone); ``used`` grows with time. ``taken``: tokens that it takes memory for: what an
    earlier sequence has left stays until the next one computes something. ``conversation``: under
    which name it may be kept on disk (empty: not at all); ``kept``: nothing has changed since."""

    number: int
    tokens: list[int] = field(default_factory=list)
    taken: int = 0
    owner: str | None = None
    used: int = 0
    adapter: str = ""
    conversation: str = ""
    kept: bool = False

    def shares(self, prompt: Sequence[int], adapter: str) -> int:
        """How much of the beginning of ``prompt`` it holds."""
        return common(self.tokens, prompt) if self.adapter == adapter else 0


@record
class Placement:
    """Where a sequence goes.

    Attributes:
        slot: its own from now on.
        reused: tokens at its beginning that need not be computed.
        copy_from: the slot that has them, if it is another one.
        released: slots whose contents have been given up for it.
    """

    slot: int
    reused: int
    copy_from: int | None = None
    released: tuple[int, ...] = ()


class Slots:
    """The slots of one runner.

    Args:
        count: how many there are.
        budget: tokens that all of them may hold together.
        reuses: whether what a slot holds can be kept for another sequence.
    """

    def __init__(self, count: int, budget: int, *, reuses: bool) -> None:
        self._slots = [Slot(number) for number in range(count)]
        self._budget = budget
        self._reuses = reuses
        self._clock = 0
        self._promised: dict[int, int] = {}

    def place(
        self,
        owner: str,
        prompt: Sequence[int],
        length: int,
        *,
        adapter: str = "",
        conversation: str = "",
    ) -> Placement | None:
        """A slot for ``owner``, whose sequence will have up to ``length`` tokens.

        ``adapter``, ``conversation``: see `Slot`. ``None``: there is none now, or too little of the
        budget is left.
        """
        free = [slot for slot in self._slots if slot.owner is None]
        running = sum(map(self._room, self._promised))
        if not free or (running and running + length > self._budget):
            return None
        best = max(self._slots, key=lambda slot: (slot.shares(prompt, adapter), -slot.used))
        shared = min(best.shares(prompt, adapter), len(prompt) - 1) if self._reuses else 0
        oldest = min(free, key=lambda slot: (len(slot.tokens) > 0, slot.used))
        continues = best.owner is None and shared >= len(best.tokens) - 1
        if continues or best is oldest or (best.owner is None and shared and len(free) == 1):
            target, source = best, None
        elif shared >= COPY_FROM:
            target, source = oldest, best.number
        else:
            target, source, shared = oldest, None, 0
        target.tokens = list(prompt[:shared])
        target.taken = shared if source is not None else target.taken
        target.adapter = adapter
        target.owner = owner
        target.conversation, target.kept = conversation, False
        self._promised[target.number] = length
        self._touch(target)
        keep = {target.number} | ({source} if source is not None else set())
        return Placement(target.number, shared, source, self._make_room(keep))

    def extend(self, number: int, tokens: Sequence[int]) -> None:
        """The slot holds ``tokens``, too."""
        slot = self._slots[number]
        slot.tokens.extend(tokens)
        slot.taken = len(slot.tokens)
        slot.kept = False
        self._touch(slot)

    def unkept(self) -> list[Slot]:
        """The slots whose conversations may be kept on disk and are not; of each conversation the
        one that was used last, and that of the last one first."""
        latest: dict[str, Slot] = {}
        for slot in sorted(self._slots, key=lambda slot: slot.used):
            if slot.conversation and slot.tokens:
                latest.pop(slot.conversation, None)
                latest[slot.conversation] = slot
        return [slot for slot in reversed(latest.values()) if not slot.kept]

    def free(self, number: int) -> None:
        """Its sequence has ended; what it holds stays until the space is needed."""
        self._slots[number].owner = None
        if not self._reuses:
            self._slots[number].tokens.clear()
        del self._promised[number]

    def held(self, number: int) -> int:
        """Tokens in the slot."""
        return len(self._slots[number].tokens)

    def forget(self, number: int) -> None:
        """What the slot holds cannot be trusted (a step failed), and is released."""
        self._slots[number].tokens.clear()
        self._slots[number].taken = 0

    def _make_room(self, keep: set[int]) -> tuple[int, ...]:
        """Give up contents, the longest unused first, until the rest is within the budget."""
        released = []
        idle = [slot for slot in self._slots if slot.owner is None and slot.number not in keep]
        for slot in sorted(idle, key=lambda slot: slot.used):
            if sum(self._room(slot.number) for slot in self._slots) <= self._budget:
                break
            if slot.taken:
                slot.tokens.clear()
                slot.taken = 0
                released.append(slot.number)
        return tuple(released)

    def _room(self, number: int) -> int:
        """Tokens that a slot takes, or will."""
        return max(self._slots[number].taken, self._promised.get(number, 0))

    def _touch(self, slot: Slot) -> None:
        self._clock += 1
        slot.used = self._clock


def common(left: Sequence[int], right: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count
