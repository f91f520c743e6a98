"""The form in which every text is compared, and expressions compiled when first needed. Pure."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator

_INVISIBLE = (
    # Default_Ignorable_Code_Point of Unicode 16, and what encloses a character (keycaps);
    # control characters and the colours of a terminal.
    r"[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    r"\u2060-\u206f\u20dd-\u20e4\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
    r"|\x1b\[[0-9;?]{0,20}[A-Za-z]|[\x00-\x08\x0e-\x1b\x7f]"
)
_ESCAPE = (
    r"&(?:#[xX]?[0-9A-Fa-f]{1,6}|[A-Za-z]{2,8});|(?:%[0-9A-Fa-f]{2})+"
    r"|\\(?:u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|[nrt](?![a-z])|[\"'/])"
)
_BROKEN = r"=\n|(?:=[0-9A-F]{2})+"
"""What quoted-printable makes of the end of a line, and of other characters than letters."""
_COMBINING = r"[\u0300-\u036f\u0483-\u0489\u20d0-\u20ff]"
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u2212"
_STOPS = "\u3002\u00b7\u2022\u30fb"
_PLAIN = str.maketrans(dict.fromkeys(_DASHES, "-") | dict.fromkeys(_STOPS, "."))

_LOOK_ALIKES = str.maketrans(
    "авсԁеһіјкӏорԛѕтухԝАВСЕНІЈКМОРЅТУХαβεικνορτυχΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
    "abcdehijklopqstuxwABCEHIJKMOPSTYXabeiknoptuxABEZHIKMNOPTYX",
)
"""Cyrillic and Greek letters, and those of ASCII for which an eye takes them."""


def normalise(text: str) -> str:
    """``text`` without what is not seen; compatibility forms, dashes, digits and stops are those
    of ASCII."""
    invisible = compiled(_INVISIBLE)
    text = invisible.sub("", text).replace("\r\n", "\n")
    if text.isascii():
        return text
    # What is invisible only after it is decomposed goes now.
    text = invisible.sub("", unicodedata.normalize("NFKC", text)).translate(_PLAIN)
    text = compiled(_COMBINING).sub("", text)  # what crosses out, too
    return compiled(r"(?![0-9])\d").sub(lambda found: str(unicodedata.decimal(found[0])), text)


def forms(text: str) -> Iterable[str]:
    """Each different form in which ``text`` is compared: as it is, in its normal form, and with
    what escapes of HTML, URLs and JSON mean (a line that ends in JSON before a small letter may as
    well be a path of Windows: both are compared), and those of mail, and with ASCII's letters for
    look-alikes among them."""
    if not text:
        return ()
    normal = normalise(text)
    escaped = normalise(compiled(_ESCAPE).sub(_meaning, normal))
    lines = escaped if "\\" not in escaped else compiled(r"\\[nrt]").sub("\n", escaped)
    mailed = normal
    if holds(r"=(?:\n|3D|40|[A-F][0-9A-F])", normal):
        mailed = normalise(compiled(_BROKEN).sub(_meaning, normal))
    latin = normal if normal.isascii() else compiled(r"\S+").sub(_without_look_alikes, normal)
    return dict.fromkeys((text, normal, escaped, lines, mailed, latin))


def _without_look_alikes(found: re.Match[str]) -> str:
    """A word in ASCII's letters, if it has any: a wholly Cyrillic one is what it seems."""
    word = found[0]
    return word.translate(_LOOK_ALIKES) if holds(r"[A-Za-z]", word) else word


def _meaning(found: re.Match[str]) -> str:
    escape = found[0]
    if escape[0] == "&":
        from html import unescape

        return unescape(escape)
    if escape[0] in "%=":
        return bytes.fromhex(escape.strip("=\n").translate({37: None, 61: None})).decode(
            errors="replace"
        )
    if escape[1] in "nrt":
        return "\n"
    return escape[1] if len(escape) == 2 else chr(int(escape[2:], 16))


def unwrap(text: str) -> str:
    """``text`` with every line bare of margins, quotes, and signs that continue it or comment."""
    if "\n" not in text:
        return text
    return "\n".join(line.strip(" \t\r>|#*+/\\\"'") for line in text.split("\n"))


@functools.cache
def compiled(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """``pattern``, compiled when it is first needed."""
    return re.compile(pattern, flags)


def holds(pattern: str, text: str, flags: int = 0) -> bool:
    """Whether ``pattern`` is found in ``text``."""
    return compiled(pattern, flags).search(text) is not None


def occurrences(pattern: str, text: str, left: str = "") -> Iterator[re.Match[str]]:
    """Where ``pattern`` is found and ``left``, a look-behind, holds before it; also where one
    begins inside another. ``pattern`` has bounds.

    Apart, since an expression that begins with a look-behind is tried at every character.
    """
    search, allowed, at = compiled(pattern).search, compiled(left).match, 0
    while found := search(text, at):
        at = found.start() + 1
        if allowed(text, found.start()):
            yield found
