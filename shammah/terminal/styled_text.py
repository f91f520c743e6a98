"""Text with styles, and its lines on a terminal. Pure.

A line is a tuple of spans, a span a text with the numbers of its SGR codes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from prompt_toolkit.utils import get_cwidth

Span = tuple[str, str]
Line = tuple[Span, ...]


def get_width(text: str) -> int:
    """Cells that ``text`` takes; control characters none."""
    return sum(max(0, get_cwidth(one)) for one in text)


def wrap(spans: Sequence[Span], width: int) -> list[Line]:
    """Lines of at most ``width`` cells, broken at blanks and beside wide characters; a word
    that is longer than a line is cut."""
    lines: list[Line] = []
    for paragraph in _split_lines(spans):
        line: list[Span] = []
        used = 0
        for word in _words(paragraph):
            size = sum(get_width(text) for text, _ in word)
            blank = all(text.isspace() for text, _ in word)
            if used + size > width and used and not blank:
                lines.append(closed(line))
                line, used = [], 0
            if blank and not used and lines:
                continue
            if size > width:
                *whole, rest = _cut(word, width)
                lines += whole
                word = list(rest)
                size = sum(get_width(text) for text, _ in word)
            line += word
            used += size
        lines.append(closed(line))
    return lines


def _split_lines(spans: Sequence[Span]) -> Iterator[list[Span]]:
    line: list[Span] = []
    for text, style in spans:
        for number, part in enumerate(text.split("\n")):
            if number:
                yield line
                line = []
            if part:
                line.append((part, style))
    yield line


_WORD = re.compile(r"\s+|[^\s\u1100-\U0010ffff]+|[\u1100-\U0010ffff]")


def _words(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Runs that must not be broken. A word may have several styles."""
    word: list[Span] = []
    for text, style in spans:
        for found in _WORD.finditer(text):
            part = found[0]
            breaks = part.isspace() or get_width(part[0]) == 2
            if word and (breaks or word[-1][0].isspace() or get_width(word[-1][0][-1]) == 2):
                yield word
                word = []
            word.append((part, style))
    if word:
        yield word


def _cut(word: Sequence[Span], width: int) -> list[Line]:
    pieces: list[list[Span]] = [[]]
    used = 0
    for text, style in word:
        for one in text:
            size = max(0, get_cwidth(one))
            if used + size > width:
                pieces.append([])
                used = 0
            pieces[-1].append((one, style))
            used += size
    return [merged(piece) for piece in pieces]


def closed(line: Sequence[Span]) -> Line:
    """``line`` without blanks at its end."""
    kept = list(line)
    while kept and not kept[-1][0].rstrip():
        kept.pop()
    if kept:
        kept[-1] = (kept[-1][0].rstrip(), kept[-1][1])
    return merged(kept)


def merged(line: Sequence[Span]) -> Line:
    """``line`` with neighbours of one style as one span."""
    merged: list[Span] = []
    for text, style in line:
        if merged and merged[-1][1] == style:
            merged[-1] = (merged[-1][0] + text, style)
        else:
            merged.append((text, style))
    return tuple(merged)
