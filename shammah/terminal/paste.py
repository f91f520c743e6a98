"""The marks that a terminal puts around pasted text (bracketed paste). Pure."""

from __future__ import annotations

BEGIN, END = "\x1b[200~", "\x1b[201~"
ON, OFF = b"\x1b[?2004h", b"\x1b[?2004l"
"""Switch the marks on and off."""


def is_open(text: str) -> bool:
    """Return whether ``text`` begins a paste that it does not end."""
    return text.rfind(BEGIN) > text.rfind(END)


def split(text: str) -> tuple[str, str]:
    """Split ``text`` after its last paste."""
    if is_open(text):
        return text, ""
    pasted, mark, typed = text.rpartition(END)
    return pasted + mark, typed


def content(text: str) -> str:
    """Return ``text`` without the marks."""
    return text.replace(BEGIN, "").replace(END, "")
