"""The terminal for rich. Slow to import."""

from __future__ import annotations

from rich.console import Console, ConsoleDimensions

MOST_COLUMNS, MOST_ROWS = 1000, 300
"""More than any screen shows. A terminal may claim any size, and every cell is written."""


class BoundedConsole(Console):
    """A console that uses at most that much of what a terminal claims to have."""

    @property
    def size(self) -> ConsoleDimensions:
        """Columns and rows to draw on."""
        claimed = super().size
        return ConsoleDimensions(min(claimed.width, MOST_COLUMNS), min(claimed.height, MOST_ROWS))

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size
