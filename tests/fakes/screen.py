"""What a terminal shows of what is written to it (pyte)."""

from __future__ import annotations

import pyte


class Picture:
    """A terminal of ``columns`` by ``rows`` with everything that has scrolled away."""

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.001)
        self.screen.set_mode(pyte.modes.LNM)  # as the line discipline does
        self._stream = pyte.Stream(self.screen)

    def write(self, text: str) -> None:
        self._stream.feed(text)

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)

    def size(self) -> tuple[int, int]:
        return self.screen.columns, self.screen.lines

    @property
    def lines(self) -> list[str]:
        """What is on the screen now, without blanks at the ends of lines."""
        return [line.rstrip() for line in self.screen.display]

    @property
    def scrolled(self) -> list[str]:
        """What has scrolled away, the oldest first."""
        width = self.screen.columns
        return [
            "".join(line[column].data for column in range(width)).rstrip()
            for line in self.screen.history.top
        ]

    @property
    def text(self) -> str:
        """Everything that was ever left standing."""
        return "\n".join([*self.scrolled, *self.lines]).rstrip("\n")
