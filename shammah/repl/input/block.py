'''Text between ``"""`` and ``"""``: several lines that are one question, as they are. Pure.'''

from __future__ import annotations

MARK = '"""'


def is_open(text: str) -> bool:
    """Whether ``text`` begins a block that it does not end."""
    begun = text.lstrip()
    return begun.startswith(MARK) and not begun.rstrip().endswith(MARK, len(MARK))


def content(text: str) -> str | None:
    """What stands in the block that ``text`` is; ``None`` if it is none."""
    begun = text.strip()
    if not begun.startswith(MARK):
        return None
    return begun.removeprefix(MARK).removesuffix(MARK).strip("\n")
