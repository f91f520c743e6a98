"""Painting an answer as it streams.

Each piece lays the text out again, and what differs from the screen is written: mostly the new end
of the last line. The cursor only moves up within the block being written, and at most by what the
screen holds, so nothing that has scrolled away is touched or repeated. A block that another follows
is final and forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from shammah.terminal.printable import PrintablePieces
from shammah.terminal.wrap import Line, Plain, cells

if TYPE_CHECKING:
    from shammah.terminal.markdown import Markdown

WIDEST = 100
"""Cells of a line of running text; longer ones are hard to read."""
REST = 2.0
"""The next repaint waits this many times as long as the last one took, so that a very long block (a
table of hundreds of rows) leaves the processor to the model."""
LONG = 4096
"""Characters of such a block. A shorter one is painted with each piece, or its end would stay
unseen while the model pauses."""

Write = Callable[[str], None]
Size = Callable[[], tuple[int, int]]
"""Returns the columns and rows of the terminal."""


class Answer(Protocol):
    """An answer on its way to the screen; ``finish`` leaves the cursor at the end of the last
    line."""

    def feed(self, piece: str) -> None: ...

    def finish(self) -> None: ...


class RawAnswer:
    """Shows the text as it is, without what a terminal would obey."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._pieces = PrintablePieces()

    def feed(self, piece: str) -> None:
        self._write(self._pieces.feed(piece))

    def finish(self) -> None:
        self._write(self._pieces.finish())


class LaidOutAnswer:
    """Shows the text as a renderer lays it out.

    Args:
        write: writes to the terminal, whose cursor is at the beginning of a line.
        clock: seconds, for the rest between expensive repaints.
    """

    def __init__(
        self,
        renderer: Markdown | Plain,
        write: Write,
        size: Size,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._renderer = renderer
        self._write = write
        self._size = size
        self._clock = clock
        self._source = ""
        self._pieces = PrintablePieces()
        self._shown: list[Line] = []
        self._frozen = 0
        self._columns, self._rows = size()
        self._width = self._text_width()
        self._next_paint = 0.0

    def feed(self, piece: str) -> None:
        self._source += self._pieces.feed(piece)
        began = self._clock()
        if len(self._source) < LONG or began >= self._next_paint:
            self._paint(self._renderer.presentable(self._source))
            ended = self._clock()
            self._next_paint = ended + REST * (ended - began)

    def finish(self) -> None:
        self._source += self._pieces.finish()
        self._paint(self._source)

    def _text_width(self) -> int:
        return max(1, min(self._columns - 1, WIDEST))

    def _paint(self, source: str) -> None:
        size = self._size()
        if size != (self._columns, self._rows):
            # Nobody knows where the terminal has moved the lines.
            self._columns, self._rows = size
            self._frozen = len(self._shown)
        layout = self._renderer.lay_out(source, self._width)
        self._show(list(layout.lines))
        if layout.open_source:
            lines = self._source.split("\n")
            self._source = "\n".join(lines[layout.open_source :])
            self._shown = self._shown[layout.open_line :]
            self._frozen = max(0, self._frozen - layout.open_line)
            # What is open was just written at this size, so it may be rewrapped.
            self._width = self._text_width()

    def _show(self, lines: list[Line]) -> None:
        """Make the screen show ``lines`` in place of what it shows of this block."""
        if not lines:
            return  # what is undecided may have been shown already
        shown, last = self._shown, len(self._shown) - 1
        frozen = max(self._frozen, self._first_reachable())
        same = 0
        while same < min(len(lines), len(shown)) and lines[same] == shown[same]:
            same += 1
        added = _added(shown[last], lines[last]) if 0 <= last < len(lines) else None
        if not shown:
            self._write_lines(lines, fresh=True)
        elif same >= last and added is not None:
            self._write(_painted(added))
            self._write_lines(lines[len(shown) :])
        elif max(same, frozen) <= last:
            first = min(max(same, frozen), len(lines) - 1)
            up = sum(self._height(line) for line in shown[first:]) - 1
            self._write("\r" + (f"\x1b[{up}A" if up else "") + "\x1b[J")
            self._write_lines(lines[first:], fresh=True)
        elif last < len(lines) and _added(lines[last], shown[last]) is None:
            self._write_lines(lines[last:])  # better a line twice than words not at all
        else:
            self._write_lines(lines[len(shown) :])
        self._shown = lines

    def _write_lines(self, lines: list[Line], *, fresh: bool = False) -> None:
        """``fresh``: the cursor is where the first line begins, not at the end of another."""
        if lines:
            self._write(("" if fresh else "\n") + "\n".join(map(_painted, lines)))

    def _first_reachable(self) -> int:
        """Return the first line that has not scrolled away."""
        height = 0
        for index in reversed(range(len(self._shown))):
            height += self._height(self._shown[index])
            if height >= self._rows:
                return index + 1
        return 0

    def _height(self, line: Line) -> int:
        """Return the rows that the terminal wraps ``line`` to."""
        whole = "".join(text for text, _ in line)
        if cells(whole) <= self._columns:
            return 1
        rows, column = 1, 0
        for one in whole:
            if one == "\t":
                column = min((column // 8 + 1) * 8, self._columns - 1)
                continue
            size = cells(one)
            if column + size > self._columns:
                rows, column = rows + 1, 0
            column += size
        return rows


def _painted(line: Line) -> str:
    return "".join(f"\x1b[{style}m{text}\x1b[0m" if style else text for text, style in line)


def _added(before: Line, after: Line) -> Line | None:
    """Return the rest of ``after``, which begins with ``before``, or ``None`` if it does not."""
    rest = list(after)
    for text, style in before:
        if not rest or rest[0][1] != style or not rest[0][0].startswith(text):
            return None
        left = rest[0][0].removeprefix(text)
        rest[:1] = [(left, style)] if left else []
    return tuple(rest)


class Rendering:
    """Makes answers. `load` is slow, so a thread behind the prompt calls it; an answer before that
    is plain.

    Args:
        possible: whether the terminal can show Markdown.
        wraps: whether plain lines are broken between words.

    Attributes:
        markdown: whether to show it.
    """

    def __init__(self, *, possible: bool, wraps: bool = False) -> None:
        self.possible = possible
        self._wraps = wraps
        self.markdown = True
        self._renderer: Markdown | None = None

    def load(self) -> None:
        """Import what Markdown needs."""
        if self.possible and self._renderer is None:
            from shammah.terminal.markdown import Markdown

            renderer = Markdown()
            renderer.lay_out("warm *up*\n```python\nx = 1\n```", 40)
            self._renderer = renderer

    def begin(self, write: Write, size: Size, style: str = "") -> Answer:
        """Begin an answer, at the beginning of a line; with a ``style``, plain text in it."""
        if style:
            return LaidOutAnswer(Plain(style), write, size)
        if self.markdown and self._renderer is not None:
            return LaidOutAnswer(self._renderer, write, size)
        return LaidOutAnswer(Plain(), write, size) if self._wraps else RawAnswer(write)
