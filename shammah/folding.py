"""Sentences in lines of a terminal's width, which would else break them within words. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

TAB = 8
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_WORD = re.compile(r" *[^ ]+")


def cells(text: str) -> int:
    """How wide ``text`` is: wide characters take two cells, a tab at most eight, styles none."""
    text = _STYLE.sub("", text)
    if text.isascii():
        return len(text) + (TAB - 1) * text.count("\t")
    import unicodedata  # most sentences do without

    return sum(
        TAB if one == "\t" else 2 if unicodedata.east_asian_width(one) in "WF" else 1
        for one in text
    )


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
