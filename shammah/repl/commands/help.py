"""The text of ``/help``. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shammah.terminal.text import fold

HANGING = " " * 16
"""Where the description of a command goes on."""


def describe_help(title: str, entries: Mapping[str, str], columns: int) -> Iterator[str]:
    """Yield the lines of a group. ``entries``: name to description."""
    yield f"{title}:"
    for name, words in entries.items():
        yield describe_command(name, words, columns)


def describe_command(name: str, words: str, columns: int) -> str:
    """Return the line of one command."""
    return fold(f"  {name:12}  {words}", max(30, min(columns - 1, 100)), HANGING)
