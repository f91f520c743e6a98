"""Painting an answer as it streams.

Each piece lays the text out again, and what differs from the screen is written: mostly the new end
of the last line. The cursor only moves up within the block being written, and at most by what the
screen holds, so nothing that has scrolled away is touched or repeated. A block that another follows
is final and forgotten.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from shammah.terminal.text import NARROWEST, Layout, Line, PrintablePieces, cells, wrap

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

_FENCE = re.compile(r" {0,3}(```|~~~)")
_AS_IT_IS = re.compile(r" {4}|\t|\||" + _FENCE.pattern)
"""How a line of code or a table begins, which must come out of a terminal as it went in."""

Write = Callable[[str], None]
Size = Callable[[], tuple[int, int]]
"""Returns the columns and rows of the terminal."""


class Plain:
    """Lays texts out as they are written: running text is wrapped between words, code and tables
    are not. A word that is too long stays whole. All of it has one ``style``."""

    def __init__(self, style: str = "") -> None:
        self._style = style

    def lay_out(self, source: str, width: int) -> Layout:
        """Lay ``source`` out in lines of at most ``width`` cells, except code and long words."""
        lines: list[Line] = []
        fence: tuple[int, int] | None = None  # where the code that is open began
        opened = (0, 0)
        for number, text in enumerate(source.split("\n")):
            opened = fence or (number, len(lines))
            if _FENCE.match(text):
                fence = None if fence else opened
            if fence or _AS_IT_IS.match(text):
                lines.append(((text, self._style),) if text else ())
            else:
                lines += wrap([(text, self._style)], max(NARROWEST, width), whole_words=True)
        return lines, *opened

    def presentable(self, source: str) -> str:
        """Return ``source``: nothing that follows changes its meaning."""
        return source


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
        lines, open_source, open_line = self._renderer.lay_out(source, self._width)
        self._show(lines)
        if open_source:
            self._source = "\n".join(self._source.split("\n")[open_source:])
            self._shown = self._shown[open_line:]
            self._frozen = max(0, self._frozen - open_line)
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


def broken(text: str, columns: int) -> str:
    """Return ``text`` as `Plain` lays it out on a terminal of ``columns``."""
    lines, _, _ = Plain().lay_out(text, columns - 1)
    return "\n".join("".join(part for part, _ in line) for line in lines)
