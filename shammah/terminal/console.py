"""The terminal as rich draws on it. Slow to import."""

from __future__ import annotations

from rich.console import Console, ConsoleDimensions

MOST_COLUMNS, MOST_ROWS = 1000, 300
"""More than the largest screen shows in the smallest letters. A terminal may claim any size, and
every cell of a view that fills it is written each time."""


class BoundedConsole(Console):
    """A console that uses no more than the upper left of what a terminal claims to have."""

    @property
    def size(self) -> ConsoleDimensions:
        """Columns and rows to draw on now."""
        claimed = super().size
        return ConsoleDimensions(min(claimed.width, MOST_COLUMNS), min(claimed.height, MOST_ROWS))

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size
