"""What a terminal puts around a text that is pasted (bracketed paste). Pure."""

from __future__ import annotations

BEGIN, END = "\x1b[200~", "\x1b[201~"
ON, OFF = b"\x1b[?2004h", b"\x1b[?2004l"
"""Ask the terminal for these marks; ask for none."""


def is_open(text: str) -> bool:
    """Whether ``text`` begins a paste that it does not end."""
    return text.rfind(BEGIN) > text.rfind(END)


def split(text: str) -> tuple[str, str]:
    """``text`` up to the end of its last paste, and what was typed after that."""
    if is_open(text):
        return text, ""
    pasted, mark, typed = text.rpartition(END)
    return pasted + mark, typed


def content(text: str) -> str:
    """``text`` without the marks."""
    return text.replace(BEGIN, "").replace(END, "")
