"""Which adapters a runner holds, and which must go when there are too many. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

BUDGET_BYTES = 1 << 28
"""What adapters may take together, beyond those that answers under way need."""


@dataclass(slots=True)
class _Held:
    size: int
    used: int = 0


class AdapterCache:
    """The adapters of one runner, by their keys.

    Args:
        budget: bytes that they may take together.
        drop: has the runner let go of one.
    """

    def __init__(self, budget: int, drop: Callable[[str], None]) -> None:
        self._budget = budget
        self._drop = drop
        self._held: dict[str, _Held] = {}
        self._clock = 0

    def holds(self, key: str) -> bool:
        return key in self._held

    def use(self, key: str) -> None:
        """Somebody asks for it now."""
        self._clock += 1
        self._held[key].used = self._clock

    def add(self, key: str, size: int, needed: Collection[str]) -> None:
        """The runner holds it, too, in ``size`` bytes; what was unused for longest makes room.

        ``needed``: those that running answers use. They stay, whatever they take.
        """
        self._held[key] = _Held(size)
        self.use(key)
        idle = [one for one in self._held if one != key and one not in needed]
        for one in sorted(idle, key=lambda one: self._held[one].used):
            if sum(held.size for held in self._held.values()) <= self._budget:
                break
            del self._held[one]
            self._drop(one)
