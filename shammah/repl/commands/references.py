"""What a question brings along: files named with ``@``, and what commands have written."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from shammah.chat.attachments import Attachment, read_attachment
from shammah.errors import ShammahError
from shammah.router.decision import LEAST_TOKENS
from shammah.terminal.wording import printable

_REFERENCE = re.compile(r"""(?:^|(?<=\s))@(?:"([^"\n]+)"|'([^'\n]+)'|(\S+))""")
_FILE_NAME = re.compile(r"^[^()\[\]{}]*\w\.[A-Za-z]\w{0,4}$")
"""A name with an extension, and no program text: ``notes.txt``, not ``app.route('/')``."""
_AFTER_A_NAME = ".,;:!?)]}'\""


@dataclass(frozen=True, slots=True)
class Room:
    """Tokens that each backend can take; 0: not known, ``None``: it will not be asked."""

    local: int | None
    cloud: int | None


def read_references(
    question: str, report: Callable[[str], None], agrees: Callable[[str], bool]
) -> list[Attachment]:
    """The files that ``question`` names.

    What stands after an ``@`` and is no file is text: a decorator, a person.

    Args:
        question: as it was entered.
        tell: given a sentence about what looks like a path and is not there.
        agrees: whether the person wants the question to be sent, although what can only be meant
            for a file is not there: a model would make its content up.

    Raises:
        ShammahError: a file cannot be taken.
    """
    found: dict[str, Attachment] = {}
    for match in _REFERENCE.finditer(question):
        name = match[1] or match[2] or match[3]
        path = Path(name).expanduser() if not name.startswith("~~") else Path(name)
        if match[3] and not path.exists():
            stripped = name.rstrip(_AFTER_A_NAME)
            path = Path(stripped).expanduser() if stripped else path
            name = stripped or name
        if path.is_file() or (path.exists() and ("/" in name or not path.is_dir())):
            found.setdefault(str(path.absolute()), read_file(path, name, report))
        elif match[1] or match[2] or name.startswith(("/", "./", "../", "~/")):
            raise _refused(f"There is no file {name!r:.200}.", "Tab completes names after @.")
        elif path.is_dir():
            report(f"{name} is a directory: it is sent as text.")
        elif _FILE_NAME.search(name):
            if not agrees(f"There is no file {printable(name):.200}. Send it as text?"):
                raise _refused("Not sent.", "Tab completes names after @.")
        elif "/" in name or "." in name:
            report(f"There is no file {name}: it is sent as text.")
    return list(found.values())


def read_file(path: Path, name: str, report: Callable[[str], None]) -> Attachment:
    """The text of a file. ``report`` is given a sentence about what of it is no text.

    Raises:
        ShammahError: it is no text file, is too large or cannot be read.
    """
    if not path.is_file():  # a pipe without a writer would keep us for ever
        raise _refused(f"{name} is a directory." if path.is_dir() else f"{name} is no file.")
    try:
        read = read_attachment(str(path), report)
    except ShammahError as error:
        raise _refused(error.message, error.hint, error.code) from error
    if read.replaced:
        report(f"{name}: {read.replaced:,} of its bytes are not UTF-8 and became \ufffd.")
    sources = tuple(dict.fromkeys(read.sources))
    return replace(read, name=name, language=path.suffix.removeprefix("."), sources=sources)


def check_room(tokens: int, room: Room) -> None:
    """Refuse what surely nobody can take; whoever is asked counts for himself.

    Args:
        tokens: of the question with what it brings along, roughly.

    Raises:
        ShammahError: ``too_large``, with all numbers.
    """
    sizes = [("the local model", room.local), ("Claude", room.cloud)]
    known = [(who, size) for who, size in sizes if size is not None]
    if not known or any(size == 0 or tokens * LEAST_TOKENS <= size for _, size in known):
        return
    takes = " and ".join(f"{who} takes {size:,}" for who, size in known)
    raise _refused(
        f"With what it brings along the question has about {tokens:,} tokens; {takes}.",
        "Name a smaller file or a part of it; /clear makes room.",
        "too_large",
    )


def _refused(message: str, hint: str = "", code: str = "attachment") -> ShammahError:
    return ShammahError(code, printable(message), hint)
