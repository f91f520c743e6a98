"""What Tab offers: commands, their arguments, models, paths. Looks at the disk, never further."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shammah.models.catalogue import model_names
from shammah.settings.thinking import THINK

MOST = 200
"""Names of one directory that are offered."""

ARGUMENTS = {
    "private": ("on", "off"),
    "raw": ("on", "off"),
    "system": ("off",),
    "think": THINK,
}
"""Command to what may follow it, where that is one of a few words."""

_FILE = re.compile(r"""(?:^|(?<=\s))@(?:"([^"]*)|'([^']*)|(\S*))$""")
_PATH_COMMANDS = ("save", "load")


@dataclass(frozen=True, slots=True)
class Candidate:
    """``text`` stands in the place of the last ``replaces`` characters."""

    text: str
    replaces: int
    note: str = ""


def complete(before: str, commands: Mapping[str, str]) -> list[Candidate]:
    """Candidates for the text ``before`` the cursor.

    Args:
        commands: name to what it does.
    """
    if before.startswith("/"):
        name, blank, argument = before[1:].partition(" ")
        if not blank:
            return [
                Candidate(f"/{known}", len(before), words)
                for known, words in commands.items()
                if known.startswith(name)
            ]
        return _complete_argument(name, argument.lstrip())
    if found := _FILE.search(before):
        quoted = found[1] if found[1] is not None else found[2]
        if quoted is not None:
            return _paths(quoted, len(quoted) + 1, before[found.start() + 1])
        return _paths(found[3], len(found[3]))
    if before.startswith("!"):
        word = before.rpartition(" ")[2].removeprefix("!")
        return _paths(word, len(word))
    return []


def _complete_argument(name: str, argument: str) -> list[Candidate]:
    if name in _PATH_COMMANDS:
        return _paths(argument, len(argument), None)
    known: Iterable[str] = ARGUMENTS.get(name, ())
    if name == "model":
        if argument.startswith(("/", "~", ".")):
            return _paths(argument, len(argument), None)
        known = model_names(os.environ)
    return [Candidate(one, len(argument)) for one in known if one.startswith(argument)]


def _paths(typed: str, replaces: int, quote: str | None = "") -> list[Candidate]:
    """Paths that begin with ``typed``; directories end in a slash, hidden ones must be named.

    ``quote``: the one that is open; empty: to be used where one is needed; ``None``: never.
    """
    directory, name = os.path.split(typed)
    try:
        with os.scandir(Path(directory).expanduser()) as entries:
            found = sorted(
                (entry.name, entry.is_dir())
                for entry in entries
                if entry.name.startswith(name) and (name or not entry.name.startswith("."))
            )
    except (OSError, RuntimeError):  # RuntimeError: nobody's home
        return []
    return [
        Candidate(_quoted(os.path.join(directory, one), is_directory, quote), replaces)
        for one, is_directory in found[:MOST]
    ]


def _quoted(path: str, is_directory: bool, quote: str | None) -> str:
    path = f"{path}/" if is_directory else path
    if quote is None or (not quote and not re.search(r"[\s\"']", path)):
        return path
    quote = quote or ("'" if '"' in path else '"')
    return quote + path + ("" if is_directory else quote)
