"""What is asked about: files and pipes, read within bounds, with where each came from."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Sequence
from typing import Protocol

from shammah.bus.record import record
from shammah.errors import ExitCode, ShammahError
from shammah.terminal.waiting import announced
from shammah.terminal.wording import describe_size

MAX_BYTES = 4 * 1024 * 1024
"""Of one file or pipe: a million tokens of text, more than any model reads, and half of what
one message may hold (`shammah.bus.endpoints.MAX_FRAME_BYTES`)."""

UNKNOWN = None
"""A source that the system does not tell."""


@record
class Attachment:
    """One text. ``sources`` are absolute paths that it came from, as named and as resolved (a
    privacy rule may be about either), or `UNKNOWN`; ``replaced`` counts bytes that were no
    UTF-8. ``private``: the person said so. ``heading`` is what a model reads before the text;
    empty: that it is a file of this name."""

    name: str
    text: str
    sources: tuple[str | None, ...] = ()
    replaced: int = 0
    language: str = ""
    private: bool = False
    heading: str = ""


def read_attachment(path: str, report: Callable[[str], None]) -> Attachment:
    """The text of the file (or named pipe) ``path``.

    Args:
        tell: given a sentence when it takes long to come.

    Raises:
        ShammahError: ``file_unreadable``, ``file_too_long``, ``file_not_text``.
    """
    named = os.path.abspath(os.path.expanduser(path))
    try:
        with announced(report, f"Waiting for a program that writes to {path}."):
            file = open(named, "rb", buffering=0)  # noqa: SIM115 - closed below
        with file, announced(report, f"Waiting for the end of {path}."):
            if stat.S_ISDIR(os.fstat(file.fileno()).st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            data = read_bounded(file, path)
    except OSError as error:
        raise ShammahError(
            "file_unreadable",
            f"{path} cannot be read: {error.strerror}.",
            exit_code=ExitCode.USAGE,
        ) from error
    text, replaced = decode_text(data, path)
    return Attachment(path, text, (named, os.path.realpath(named)), replaced)


def read_schema(path: str | None, report: Callable[[str], None]) -> str:
    """The JSON schema in the file ``path``, as JSON in one line; empty for none.

    Raises:
        ShammahError: ``schema_invalid``, or as `read_attachment`.
    """
    if path is None:
        return ""
    hint = 'A schema is like {"type": "object", "properties": ...}; see json-schema.org.'
    try:
        schema = json.loads(read_attachment(path, report).text)
        why = "" if isinstance(schema, dict) else f"{path} does not hold a JSON object."
    except ValueError as error:
        why = f"{path} is not JSON: {error}."
    if why:
        raise ShammahError("schema_invalid", why, hint, exit_code=ExitCode.USAGE)
    return json.dumps(schema, ensure_ascii=False)


class Readable(Protocol):
    """What bytes come from."""

    def read(self, size: int, /) -> bytes | None: ...


def read_bounded(file: Readable, name: str, limit: int = MAX_BYTES) -> bytes:
    """Everything in ``file``, which may be endless.

    Raises:
        ShammahError: ``file_too_long``.
    """
    pieces: list[bytes] = []
    length = 0
    while piece := file.read(65536):
        pieces.append(piece)
        length += len(piece)
        if length > limit:
            raise ShammahError(
                "file_too_long",
                f"{name} holds more than {describe_size(limit)}, which no model reads at once.",
                "Give a part of it: head, tail or grep make one.",
                exit_code=ExitCode.USAGE,
            )
    return b"".join(pieces)


def decode_text(data: bytes, name: str) -> tuple[str, int]:
    """The text in ``data``, and how many of its bytes are not UTF-8 and became U+FFFD.

    Raises:
        ShammahError: ``file_not_text``, for what has a NUL byte.
    """
    if b"\0" in data:
        raise ShammahError(
            "file_not_text",
            f"{name} is not text: it contains NUL bytes.",
            "Only text can be asked about.",
            exit_code=ExitCode.USAGE,
        )
    data = data.removeprefix(b"\xef\xbb\xbf")
    escaped = data.decode("utf-8", "surrogateescape")
    replaced = sum("\udc80" <= character <= "\udcff" for character in escaped)
    return data.decode("utf-8", "replace") if replaced else escaped, replaced


def compose(
    question: str, attachments: Sequence[Attachment], piped: Attachment | None = None
) -> str:
    """One question of the words, the attachments below their headings, and what came through a
    pipe.

    All as it came, but for the last line's end: blanks at the beginning of a line may mean much.
    """
    parts = [question]
    for one in attachments:
        parts.append(f"{one.heading or f'File {one.name}'}:\n{fence(one.text, one.language)}")
    parts += [piped.text] if piped else []
    return "\n\n".join(_without_end(part) for part in parts if part.strip())


def fence(text: str, language: str = "") -> str:
    """``text`` as a Markdown code block, whatever backquotes it holds."""
    marks = "```"
    while marks in text:
        marks += "`"
    return f"{marks}{language}\n{_without_end(text)}\n{marks}"


def _without_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")
