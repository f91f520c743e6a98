"""What ``/help`` says. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shammah.terminal.wrap import fold

GROUPS = {
    "Answers": ("why", "redo", "edit", "good", "bad", "fix", "feedback", "undo", "raw"),
    "Conversation": ("system", "clear", "save", "load", "history", "resume", "compact"),
    "Who answers": (
        "private",
        "local",
        "cloud",
        "model",
        "models",
        "adapter",
        "unload",
        "join",
        "takeover",
    ),
}
"""Title to commands in order; those that there are not are left out."""
OTHERS = "Program"
HANGING = " " * 16
"""Below the words of a command they go on."""

LINES = {
    "@FILE": 'Bring a text file along; @"with blanks"',
    "!COMMAND": "Run a command, when you agree, and bring its output along",
    "!private ...": "Keep this question and its answer on this machine",
    '"""': "Begin and end a question of several lines; so does Alt-Enter in one",
}
"""What else a line may hold."""


def describe_help(commands: Mapping[str, str], columns: int) -> Iterator[str]:
    """The lines of ``/help``.

    Args:
        commands: name to what it does.
    """
    grouped = {name for names in GROUPS.values() for name in names}
    groups = {
        **GROUPS,
        OTHERS: tuple(name for name in commands if name not in grouped),
    }
    for title, names in groups.items():
        known = {f"/{name}": commands[name] for name in names if name in commands}
        if known:
            yield from _list(title, known, columns)
    yield from _list("In a line", LINES, columns)


def describe_command(name: str, words: str, columns: int) -> str:
    """The line of one command."""
    return fold(f"  {f'/{name}':12}  {words}", _width(columns), HANGING)


def _list(title: str, entries: Mapping[str, str], columns: int) -> Iterator[str]:
    yield f"{title}:"
    for name, words in entries.items():
        yield fold(f"  {name:12}  {words}", _width(columns), HANGING)


def _width(columns: int) -> int:
    return max(30, min(columns - 1, 100))
