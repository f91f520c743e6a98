"""Conversations in files of the person's own."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from shammah.errors import ExitCode, ShammahError

LARGEST = 64 * 2**20
"""Bytes of a file that is read as a conversation."""

SUFFIXES = {".md": "markdown", ".markdown": "markdown", ".jsonl": "jsonl"}


def form_of(path: Path) -> str:
    """The form that a file's name asks for.

    Raises:
        ShammahError: ``usage``.
    """
    form = SUFFIXES.get(path.suffix.lower())
    if form is None:
        raise ShammahError(
            "usage",
            f"{path.name!r:.60} ends neither in .md nor in .jsonl.",
            "The end of the name says what to write: Markdown or JSON lines.",
            exit_code=ExitCode.USAGE,
        )
    return form


def read_file(path: Path) -> str:
    """The text of a file.

    Raises:
        ShammahError: ``file_unreadable``.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise _unreadable(path, f"it is larger than {LARGEST >> 20} MiB")
        if not path.is_file():
            raise _unreadable(path, "it is no file")
        # As it is: an end of line inside a text is part of it.
        with path.open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise _unreadable(path, "it is no text in UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from error


def write_file(path: Path, parts: Iterable[str], *, overwrite: bool) -> int:
    """Write the parts whole or not at all, for their owner alone; returns how many they were.

    Raises:
        ShammahError: ``file_exists``, ``file_unwritable``; what was there is as it was.
    """
    if os.path.lexists(path) and not overwrite:
        raise ShammahError("file_exists", f"{path} exists.", "Nothing was written.")
    try:
        fd, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(fd, "w", encoding="utf-8", errors="replace", newline="") as file:
                count = 0
                for part in parts:
                    file.write(part)
                    count += 1
            os.replace(draft, path)
            return count
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(draft)
            raise
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ShammahError(
            "file_unwritable", f"{path} cannot be written ({why}).", "Name another place."
        ) from error


def _unreadable(path: Path, why: str) -> ShammahError:
    return ShammahError("file_unreadable", f"{path} cannot be read: {why}.")
