"""Where the keys and values of conversations are kept, and how those of one are erased.

A worker writes them, and a frontend erases them, whether a worker runs or not. A running one may
still hold a conversation in memory and write it later, so that an erased one leaves a mark, which
the worker heeds after it has written.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path

from shammah.errors import ShammahError
from shammah.storage.disk import describe_remedy
from shammah.storage.files import UNUSED_S, remove_abandoned

ENDING, ERASED = ".kv", ".erased"
_DIGITS = 32


def kept_directory(home: Path) -> Path:
    return home / "conversations"


def file_path(directory: Path, conversation: str, form: str) -> Path:
    """Where the keys and values of a form are. ``conversation`` comes from another process, so it
    is no part of a path."""
    return directory / f"{_digest(conversation)}-{_digest(form)}{ENDING}"


def files_of_form(directory: Path, form: str) -> list[Path]:
    return sorted(directory.glob(f"*-{_digest(form)}{ENDING}"))


def is_erased(directory: Path, conversation: str) -> bool:
    return (directory / f"{_digest(conversation)}{ERASED}").exists()


def erase(home: Path, conversations: Iterable[str]) -> None:
    """Remove what there is of these conversations, and let no running worker write it again.

    Raises:
        ShammahError: ``unerasable``: something may be left.
    """
    directory = kept_directory(home)
    if not directory.is_dir():  # a worker that may write makes it first
        return
    try:
        for conversation in conversations:
            (directory / f"{_digest(conversation)}{ERASED}").touch(0o600)
            for path in directory.glob(f"{_digest(conversation)}-*{ENDING}"):
                path.unlink(missing_ok=True)
    except OSError as error:
        why = f"Couldn't erase what the local model has computed ({error.strerror or error})."
        raise ShammahError("unerasable", why, describe_remedy(directory)) from error
    list(remove_abandoned(directory, time.time()))


def sweep(directory: Path, now: float) -> None:
    """Remove unfinished files, and the marks of what no worker can hold any more."""
    list(remove_abandoned(directory, now))
    for mark in directory.glob(f"*{ERASED}"):
        if now - mark.stat().st_mtime > UNUSED_S:
            mark.unlink(missing_ok=True)


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
