"""What is asked about: files and pipes, read within bounds, with where each came from.

Standard input is read to its end unless it is a terminal, cannot be read, or is a file that
something else has begun to read: the list of a ``while read`` loop is not for the command inside.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import stat
import threading
from collections.abc import Callable, Iterator, Sequence

from shammah.bus.record import record
from shammah.errors import ExitCode, ShammahError
from shammah.terminal.wording import describe_size

MAX_BYTES = 4 * 1024 * 1024
"""Of one file or pipe: a million tokens of text, more than any model reads, and half of what
one message may hold (`shammah.bus.endpoints.MAX_FRAME_BYTES`)."""

LATE_S = 1.0
"""A longer wait makes a person wonder, and is reported."""

STANDARD_INPUT = "Standard input"

_BEGUN = (
    "Standard input was not read: something else is reading that file. -n silences this; `-f -` "
    "reads the rest."
)


@record
class Attachment:
    """One text. ``sources`` are absolute paths that it came from, as named and as resolved (a
    privacy rule may be about either), or ``None`` where the system does not tell; ``replaced``
    counts bytes that were not UTF-8. ``private``: the person said so. ``heading`` is what a model
    reads before the text; empty: that it is a file of this name."""

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
        report: given a sentence when it takes long to come.

    Raises:
        ShammahError: ``file_unreadable``, ``file_too_long``, ``file_not_text``.
    """
    named = os.path.abspath(os.path.expanduser(path))
    try:
        with _announced(report, f"Waiting for a program that writes to {path}."):
            file = open(named, "rb", buffering=0)  # noqa: SIM115 - closed below
        with file, _announced(report, f"Waiting for the end of {path}."):
            if stat.S_ISDIR(os.fstat(file.fileno()).st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            data = read_bounded(file.read, path)
    except OSError as error:
        raise ShammahError(
            "file_unreadable",
            f"Can't read {path}: {error.strerror}.",
            exit_code=ExitCode.USAGE,
        ) from error
    text, replaced = decode_text(data, path)
    return Attachment(path, text, (named, os.path.realpath(named)), replaced)


def read_input(
    report: Callable[[str], None], *, asked: bool = False, wanted: bool = False
) -> Attachment | None:
    """The text that standard input has, with the file that it comes from.

    Args:
        report: given a sentence when its end takes long to come, and one if it is left alone.
        asked: there is a question already.
        wanted: read it whatever it is.

    Raises:
        ShammahError: ``file_unreadable``, ``file_too_long``, ``file_not_text``.
    """
    try:
        mode = os.fstat(0).st_mode
        if os.isatty(0) and not wanted:
            return None
        if fcntl.fcntl(0, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
            return None
        if asked and not wanted and stat.S_ISREG(mode) and os.lseek(0, 0, os.SEEK_CUR):
            report(_BEGUN)
            return None
        waiting = f"Waiting for the end of standard input ({_kind(mode)}); -n ignores it."
        with _announced(report, waiting):
            data = read_bounded(_read_patiently, STANDARD_INPUT)
    except OSError as error:
        why = f"Can't read standard input: {error.strerror}."
        raise ShammahError("file_unreadable", why, exit_code=ExitCode.USAGE) from error
    text, replaced = decode_text(data, STANDARD_INPUT)
    sources = _sources(mode) if text else ()
    return Attachment(STANDARD_INPUT, text, sources, replaced)


@contextlib.contextmanager
def _announced(report: Callable[[str], None], sentence: str) -> Iterator[None]:
    """Report ``sentence`` if the block takes longer than `LATE_S`, from another thread, and never
    after its end."""
    timer = threading.Timer(LATE_S, report, (sentence,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _read_patiently(size: int) -> bytes:
    """Read standard input, even if another program has set it not to block."""
    while True:
        select.select([0], [], [])
        with contextlib.suppress(BlockingIOError):
            return os.read(0, size)


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "a file")


def _sources(mode: int) -> tuple[str | None, ...]:
    """The path of the file that it is; ``None`` if the system does not tell."""
    if not stat.S_ISREG(mode):
        return ()
    try:
        return (os.readlink("/proc/self/fd/0"),)
    except FileNotFoundError:  # no /proc
        return (None,)


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


def read_bounded(read: Callable[[int], bytes | None], name: str, limit: int = MAX_BYTES) -> bytes:
    """Everything that ``read`` returns, which may be endless.

    Raises:
        ShammahError: ``file_too_long``.
    """
    pieces: list[bytes] = []
    length = 0
    while piece := read(65536):
        pieces.append(piece)
        length += len(piece)
        if length > limit:
            raise ShammahError(
                "file_too_long",
                f"{name} is larger than {describe_size(limit)}, more than any model reads at once.",
                "Pass part of it, with head, tail or grep.",
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
            "You can only ask about text.",
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
