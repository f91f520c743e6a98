"""Which adapters a runner holds, and which must go when there are too many. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection

BUDGET_BYTES = 1 << 28
"""What adapters may take together, beyond those that answers under way need."""


class AdapterCache:
    """The adapters of one runner, by their keys.

    Args:
        budget: bytes that they may take together.
        drop: has the runner let go of one.
    """

    def __init__(self, budget: int, drop: Callable[[str], None]) -> None:
        self._budget = budget
        self._drop = drop
        self._sizes: dict[str, int] = {}
        """In bytes, the longest unused first."""

    def holds(self, key: str) -> bool:
        return key in self._sizes

    def use(self, key: str) -> None:
        """Note that it is needed now."""
        self._sizes[key] = self._sizes.pop(key)

    def add(self, key: str, size: int, needed: Collection[str]) -> None:
        """The runner holds it, too, in ``size`` bytes; what was unused for longest makes room.

        ``needed``: those that running answers use. They stay, whatever they take.
        """
        idle = [one for one in self._sizes if one != key and one not in needed]
        self._sizes[key] = size
        self.use(key)
        for one in idle:
            if sum(self._sizes.values()) <= self._budget:
                break
            del self._sizes[one]
            self._drop(one)
