"""The files that a question names with ``@``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from shammah.chat.attachments import Attachment, read_attachment
from shammah.errors import ShammahError
from shammah.router.decision import LEAST_TOKENS
from shammah.terminal.wording import printable

_REFERENCE = re.compile(r"""(?:^|(?<=\s))@(?:"([^"\n]+)"|'([^'\n]+)'|(\S+))""")
_FILE_NAME = re.compile(r"^[^()\[\]{}]*\w\.[A-Za-z]\w{0,4}$")
"""A name with an extension, and no program text: ``notes.txt``, not ``app.route('/')``."""
HINT = "Tab completes names after @."
_AFTER_A_NAME = ".,;:!?)]}'\""


def read_references(
    question: str, report: Callable[[str], None], agrees: Callable[[str], bool]
) -> list[Attachment]:
    """Read the files that ``question`` names. An ``@`` in front of anything else, such as a
    decorator or a person, is text.

    Args:
        question: as it was entered.
        report: given a sentence about what looks like a path but does not exist.
        agrees: whether to send the question although what can only be meant as a file does not
            exist: a model would make its content up.

    Raises:
        ShammahError: a file cannot be read, or the question is not to be sent.
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
            found.setdefault(str(path.absolute()), _read(path, name, report))
        elif match[1] or match[2] or name.startswith(("/", "./", "../", "~/")):
            raise ShammahError("attachment", f"There is no file {name!r:.200}.", HINT)
        elif path.is_dir():
            report(f"{name} is a directory, so it is sent as text.")
        elif _FILE_NAME.search(name):
            if not agrees(f"There is no file {printable(name):.200}. Send it as text?"):
                raise ShammahError("attachment", "Not sent.", HINT)
        elif "/" in name or "." in name:
            report(f"There is no file {name}, so it is sent as text.")
    return list(found.values())


def _read(path: Path, name: str, report: Callable[[str], None]) -> Attachment:
    if not path.is_file():  # a pipe without a writer would block us forever
        kind = "a directory" if path.is_dir() else "not a file"
        raise ShammahError("attachment", f"{name} is {kind}.")
    read = read_attachment(str(path), report)
    if read.replaced:
        report(f"{name}: {read.replaced:,} of its bytes are not UTF-8 and became \ufffd.")
    sources = tuple(dict.fromkeys(read.sources))
    return replace(read, name=name, language=path.suffix.removeprefix("."), sources=sources)


def check_room(tokens: int, limits: Mapping[str, int]) -> None:
    """Refuse what surely no backend can take; the one that is asked counts for itself.

    Args:
        tokens: of the question with its attachments, roughly.
        limits: tokens that each backend can take; 0: not known.

    Raises:
        ShammahError: ``too_large``, with all numbers.
    """
    if any(limit == 0 or tokens * LEAST_TOKENS <= limit for limit in limits.values()):
        return
    takes = " and ".join(f"{backend} takes {limit:,}" for backend, limit in limits.items())
    raise ShammahError(
        "too_large",
        f"With its attachments the question has about {tokens:,} tokens; {takes}.",
        "Attach a smaller file or a part of it; /clear makes room.",
    )
