"""Foreign text on a terminal: none of it is obeyed, hidden or reordered. Pure."""

from __future__ import annotations

import functools
import re

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
