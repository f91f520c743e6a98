"""Text in lines of a terminal's width, which would else break them within words. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

TAB = 8
NARROWEST = 8
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_WORD = re.compile(r" *[^ ]+")


def cells(text: str) -> int:
    """How wide ``text`` is: wide characters take two cells, a tab at most eight, styles and marks
    on other characters none."""
    text = _STYLE.sub("", text)
    if text.isascii():
        return len(text) + (TAB - 1) * text.count("\t")
    import unicodedata  # most sentences do without

    def of(one: str) -> int:
        if one == "\t":
            return TAB
        if unicodedata.category(one) in ("Mn", "Me", "Cf"):
            return 0
        return 2 if unicodedata.east_asian_width(one) in "WF" else 1

    return sum(map(of, text))


def fold(text: str, columns: int, hanging: str | None = None) -> str:
    """``text`` with its lines broken between words. A word that is too long stays whole: it may
    be a path that somebody wants to copy.

    Args:
        hanging: what a line goes on with; ``None``: the blanks that it begins with.
    """
    return "\n".join(piece for line in text.split("\n") for piece in _fold(line, columns, hanging))


def _fold(line: str, columns: int, hanging: str | None) -> Iterator[str]:
    if cells(line) <= columns:
        yield line
        return
    indent = line[: len(line) - len(line.lstrip(" "))] if hanging is None else hanging
    current = ""
    for word in _WORD.findall(line):
        if current.strip() and cells(current + word) > columns:
            yield current
            current = indent + word.lstrip(" ")
        else:
            current += word
    yield current


def cut(text: str, columns: int) -> str:
    """``text``, or as much of it as has room in a line, with an ellipsis."""
    if cells(text) <= columns:
        return text
    while text and cells(text) >= columns:
        text = text[: min(len(text) - 1, columns - 1)]
    return text.rstrip() + "…"


_PIECE = re.compile(r"\n|[^\S\n]+|[^\s\u1100-\U0010ffff]+|[\u1100-\U0010ffff]")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_AS_IT_IS = re.compile(r" {4}|\t|\||" + _FENCE.pattern)
"""How a line of code or of a table begins. It must come out of a terminal as it went in."""


class Wrapping:
    """Running text that comes in pieces, broken between words.

    A word is written at once, and again on the next line if its end finds no room.

    Args:
        columns: the width of the terminal now.
    """

    def __init__(self, columns: Callable[[], int]) -> None:
        self._columns = columns
        self._fenced = False
        self.begin_line()

    def begin_line(self) -> None:
        """The cursor is at the beginning of a line."""
        self._line = self._word = ""
        self._used = 0

    def feed(self, text: str) -> str:
        """What to write for ``text``."""
        return "".join(self._feed(found[0]) for found in _PIECE.finditer(text))

    def _feed(self, piece: str) -> str:
        if piece == "\n":
            self._fenced ^= bool(_FENCE.match(self._line))
            self.begin_line()
            return piece
        if len(self._line) < NARROWEST:
            self._line += piece[:NARROWEST]
        if self._fenced or _AS_IT_IS.match(self._line):
            return piece
        size, width = cells(piece), max(NARROWEST, self._columns() - 1)
        fits = self._used + size <= width
        if piece.isspace():
            self._word = ""
            self._used = self._used + size if fits else width
            return piece if fits else ""
        if size == 2 and len(piece) == 1:  # lines of such characters are broken anywhere
            self._word = ""
        if fits:
            self._word += piece
            self._used += size
            return piece
        begun = cells(self._word)
        if begun == self._used:  # longer than a line: the terminal breaks it
            self._word += piece
            self._used += size
            return piece
        back = f"\x1b[{begun}D\x1b[K" if begun else ""
        self._word += piece
        self._used = begun + size
        return f"{back}\n{self._word}"
