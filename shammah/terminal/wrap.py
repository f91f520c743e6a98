"""Text, plain or with styles, in lines of a terminal's width. Pure.

A line is a tuple of spans, a span a text with the numbers of its SGR codes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence

from shammah.bus.record import record

Span = tuple[str, str]
Line = tuple[Span, ...]

TAB = 8
NARROWEST = 8
"""Cells that running text gets at least, however narrow the terminal or deep the list."""

_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_WORD = re.compile(r" *[^ ]+")

_BROKEN_ANYWHERE = (
    "\u1100-\u115f\u2e80-\ua4cf\ua960-\ua97f\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f"
    "\uff01-\uff60\uffe0-\uffe6\U00016fe0-\U0001b2ff\U0001f300-\U0001faff\U00020000-\U0003fffd"
)
"""Wide scripts, which have no blanks between words, and emoji."""
_FENCE = re.compile(r" {0,3}(```|~~~)")
_AS_IT_IS = re.compile(r" {4}|\t|\||" + _FENCE.pattern)
"""How a line of code or a table begins, which must come out of a terminal as it went in."""


@functools.cache
def _pieces(only_ascii: bool) -> re.Pattern[str]:
    """Match a line break, blanks, a word, or a character that a line may end after. The ranges are
    slow to compile, and most sentences do without."""
    if only_ascii:
        return re.compile(r"\n|[^\S\n]+|\S+")
    wide = _BROKEN_ANYWHERE
    return re.compile(rf"\n|[^\S\n]+|[^\s{wide}]+|[{wide}][\u200d\ufe0e\ufe0f]*")


def cells(text: str) -> int:
    """Return the width of ``text``: wide characters take two cells, a tab at most eight, styles and
    marks on other characters none."""
    text = _STYLE.sub("", text) if "\x1b" in text else text
    if text.isascii():
        return len(text) + (TAB - 1) * text.count("\t")
    return sum(map(_cells_of, text))


@functools.lru_cache(4096)
def _cells_of(one: str) -> int:
    import unicodedata  # most sentences do without

    if one == "\t":
        return TAB
    if unicodedata.category(one) in ("Mn", "Me", "Cf") or "\u1160" <= one <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(one) in "WF" else 1


def fold(text: str, columns: int, hanging: str | None = None) -> str:
    """Wrap the lines of ``text`` between words. A word that is too long stays whole: it may be a
    path to copy.

    Args:
        hanging: the indent of a wrapped line; ``None``: that of its beginning.
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
    """Return ``text``, or as much of it as fits, with an ellipsis."""
    if cells(text) <= columns:
        return text
    return text[: _fitting(text, columns - 1)].rstrip() + "…"


def wrap(spans: Sequence[Span], width: int, *, whole_words: bool = False) -> list[Line]:
    """Return lines of at most ``width`` cells, broken at blanks and next to wide characters.

    Args:
        whole_words: leave a word that is longer than a line to the terminal, instead of cutting it.
    """
    text = "".join(text for text, _ in spans)
    return [closed(_between(spans, *row)) for row in _rows(text, width, whole_words)]


def _rows(text: str, width: int, whole_words: bool) -> Iterator[tuple[int, int]]:
    """Yield where each line begins and ends in ``text``."""
    start = used = 0
    for found in _pieces(text.isascii()).finditer(text):
        size = cells(found[0])
        if found[0] == "\n":
            yield start, found.start()
            start, used = found.end(), 0
            continue
        if found[0].isspace():
            if start and not used:
                start = found.end()
            else:
                used += size
            continue
        if used and used + size > width:
            yield start, found.start()
            start, used = found.start(), 0
        while size > width and not used and not whole_words:
            end = start + max(1, _fitting(text[start : found.end()], width))
            yield start, end
            start, size = end, cells(text[end : found.end()])
        used += size
    yield start, len(text)


def _fitting(word: str, width: int) -> int:
    """Return how many characters of ``word`` fit."""
    used = 0
    for index, one in enumerate(word):
        used += cells(one)
        if used > width:
            return index
    return len(word)


def _between(spans: Sequence[Span], start: int, end: int) -> Iterator[Span]:
    at = 0
    for text, style in spans:
        if at < end and at + len(text) > start:
            yield text[max(0, start - at) : end - at], style
        at += len(text)


def closed(spans: Iterator[Span] | Sequence[Span]) -> Line:
    """Return ``spans`` as a line: neighbours of one style merged, and no blanks at its end."""
    line: list[Span] = []
    for text, style in spans:
        if line and line[-1][1] == style:
            line[-1] = (line[-1][0] + text, style)
        else:
            line.append((text, style))
    while line:
        text, style = line.pop()
        if text := text.rstrip():
            return (*line, (text, style))
    return ()


@record
class Layout:
    """A text laid out.

    ``lines`` are those of the whole text. From source line ``open_source`` on, which is
    ``lines[open_line]``, further text may still change how it looks; what is before is final.
    """

    lines: tuple[Line, ...]
    open_source: int = 0
    open_line: int = 0


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
        return Layout(tuple(lines), *opened)

    def presentable(self, source: str) -> str:
        """Return ``source``: nothing that follows changes its meaning."""
        return source


def broken(text: str, columns: int) -> str:
    """Return ``text`` as `Plain` lays it out on a terminal of ``columns``."""
    lines = Plain().lay_out(text, columns - 1).lines
    return "\n".join("".join(part for part, _ in line) for line in lines)
