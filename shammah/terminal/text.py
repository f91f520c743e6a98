"""Text for a terminal: foreign text, of which nothing is obeyed, hidden or reordered, and text in
lines of its width. Pure, and quick to import: every command writes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_TAGS = "\U000e0020-\U000e007f"
_FLAG = f"\U0001f3f4[{_TAGS}]{{1,7}}\U000e007f"
"""England, Scotland, Wales: a flag and its letters as tags."""
_WITHOUT_BLANKS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u1aaf\ua9e0-\uaa7f"
"""Scripts of South-East Asia, which separate words with U+200B."""
_IDEOGRAPHS = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Characters that may have one of 240 variants."""

_DECEPTIVE = (
    f"({_FLAG})"
    "|[\u202a-\u202e\u2066-\u2069]"  # another order than that of the characters
    "|[\u2028\u2029]"
    "|[\u180e\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb]"
    f"|(?<![{_WITHOUT_BLANKS}])\u200b(?![{_WITHOUT_BLANKS}])"
    "|[\U000e0000-\U000e007f]"
    f"|(?<![{_IDEOGRAPHS}])[\U000e0100-\U000e01ef]"
)
_UNDECIDED = f"(?:\u200b|\U0001f3f4[{_TAGS}]*)\\Z"


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Compile ``pattern`` when a text first needs it: sets of Unicode ranges are slow to compile,
    and every start would wait."""
    return re.compile(pattern)


def printable(text: str) -> str:
    """Return ``text`` without control characters other than newline and tab, and with what would
    hide or reorder text as ``<U+202E>``.

    A model's output may hold escape sequences (it read them, or was asked for them); a terminal
    would obey them. The joiners of emoji and of Persian (U+200C, U+200D) and the marks of Arabic
    and Hebrew (U+200E, U+200F) stay.
    """
    text = _CONTROL.sub("", text)
    return text if text.isascii() else _compiled(_DECEPTIVE).sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[1] or f"<U+{ord(found[0]):04X}>"


class PrintablePieces:
    """`printable` for a text in pieces, which may split what belongs together."""

    def __init__(self) -> None:
        self._before = self._held = ""

    def feed(self, piece: str) -> str:
        """Return what can be shown now."""
        text = self._held + piece
        undecided = None if text.isascii() else _compiled(_UNDECIDED).search(text)
        decided = text[: undecided.start()] if undecided else text
        self._held = text[len(decided) :]
        return self._shown(decided)

    def finish(self) -> str:
        """Return the rest."""
        held, self._held = self._held, ""
        return self._shown(held)

    def _shown(self, text: str) -> str:
        shown = printable(self._before + text)[len(self._before) :]
        if text:
            self._before = text[-1] if printable(text[-1]) == text[-1] else ""
        return shown


# --- lines of a width ---------------------------------------------------------------------

Span = tuple[str, str]
"""A text, and the numbers of its SGR codes."""
Line = tuple[Span, ...]
Layout = tuple[list[Line], int, int]
"""The lines of a whole text, and from which line of the text, and of these, further text may still
change how it looks; what is before is final."""

TAB = 8
NARROWEST = 8
"""Cells that running text gets at least, however narrow the terminal or deep the list."""

_STYLE = r"\x1b\[[0-9;]*m"
_WORD = r" *[^ ]+"

_BROKEN_ANYWHERE = (
    "\u1100-\u115f\u2e80-\ua4cf\ua960-\ua97f\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f"
    "\uff01-\uff60\uffe0-\uffe6\U00016fe0-\U0001b2ff\U0001f300-\U0001faff\U00020000-\U0003fffd"
)
"""Wide scripts, which have no blanks between words, and emoji."""


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
    text = _compiled(_STYLE).sub("", text) if "\x1b" in text else text
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
    for word in _compiled(_WORD).findall(line):
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
