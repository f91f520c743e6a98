"""Conversations in files of the person's own.

JSON lines hold one conversation a line, with everything that is known of it, and can be loaded.
Markdown holds the questions and answers alone, to read.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shammah.chat.conversation import Turn
from shammah.errors import ExitCode, ShammahError, UsageError
from shammah.history.record import (
    FLAGS,
    TEXTS,
    StoredConversation,
    facts_of,
    title_of,
    turn_of,
)
from shammah.storage.files import new_file, open_file

FORMAT, VERSION = "shammah-conversation", 1
SUFFIXES = {".md": "markdown", ".markdown": "markdown", ".jsonl": "jsonl"}
LARGEST = 64 * 2**20
"""Bytes of a file that is read as a conversation."""


def form_of(path: Path) -> str:
    """Return ``jsonl`` or ``markdown``, by a file's name.

    Raises:
        ShammahError: ``usage``.
    """
    form = SUFFIXES.get(path.suffix.lower())
    if form is None:
        raise UsageError(
            f"{path.name!r:.60} ends neither in .md nor in .jsonl.",
            "Name a .md file for Markdown, or a .jsonl file for JSON lines.",
        )
    return form


def write(stored: StoredConversation, form: str) -> str:
    """Return ``stored`` in a form that `form_of` names."""
    return write_json(stored) + "\n" if form == "jsonl" else write_markdown(stored)


def write_file(path: Path, parts: Iterable[str], *, overwrite: bool) -> int:
    """Write the parts whole or not at all, for their owner alone; return how many there were.

    Raises:
        ShammahError: ``file_exists``, ``file_unwritable``; what was there is as it was.
    """
    if os.path.lexists(path) and not overwrite:
        raise ShammahError("file_exists", f"{path} already exists.", "Nothing was written.")
    count = 0
    try:
        with new_file(path) as draft, draft.open("wb") as file:
            for count, part in enumerate(parts, 1):  # noqa: B007 - the last one is returned
                file.write(part.encode("utf-8", "replace"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ShammahError(
            "file_unwritable", f"{path} cannot be written: {why}.", "Choose another place."
        ) from error
    return count


def write_markdown(stored: StoredConversation) -> str:
    """Return a document, without the turns that were undone."""
    title = title_of(stored.present[0].question) if stored.present else "A conversation"
    parts = [f"# {title}"]
    for turn in stored.present:
        private = " (private)" if turn.private else ""
        by = turn.provenance.model if turn.provenance else turn.route[0] or "Shammah"
        how = " (corrected)" if turn.corrected else "" if turn.complete else " (cut short)"
        parts += [f"## You{private}", turn.question, f"## {by}{how}", turn.answer or "*No answer.*"]
    return "\n\n".join(parts) + "\n"


def write_json(stored: StoredConversation) -> str:
    """Return one line, without its end."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "id": stored.number,
        "started": as_time(stored.started),
        "system": stored.system,
        "system_private": stored.system_private,
        "turns": [turn_document(turn) for turn in stored.turns],
    }
    return json.dumps(document, ensure_ascii=False)


def turn_document(turn: Turn) -> dict[str, Any]:
    """Return a turn as plain values."""
    facts = facts_of(turn)
    del facts["key"]
    return {**facts, "at": as_time(turn.at)}


def read_file(path: Path) -> str:
    """Return the text of a file, with its ends of lines as they are.

    Raises:
        ShammahError: ``file_unreadable``.
    """
    try:
        with open_file(path) as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise OSError(errno.EFBIG, f"it is larger than {LARGEST >> 20} MiB")
        return data.decode("utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a zero byte in the name
        why = getattr(error, "strerror", None) or str(error)
        raise ShammahError("file_unreadable", f"{path} cannot be read: {why}.") from error


def read(text: str, key: Callable[[], str]) -> StoredConversation:
    """Return the conversation that `write_json` wrote, with the number 0.

    Args:
        text: the whole file.
        key: makes a name for each turn.

    Raises:
        ShammahError: ``conversation_invalid``: it is something else, or more than one.
    """
    text = text.removeprefix("\ufeff")
    try:
        if not text.lstrip().startswith("{"):
            raise _invalid("it is not a conversation that Shammah saved as JSON lines")
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) > 1:
            raise _invalid(f"it holds {len(lines)} conversations, and only one can be loaded")
        document = json.loads(lines[0])
        if document.get("format") != FORMAT:
            raise _invalid("it is JSON, but not a Shammah conversation")
        if _expect(document, "version", int) > VERSION:
            raise _invalid("it was written by a newer Shammah")
        return StoredConversation(
            0,
            _expect(document, "system", str),
            _expect(document, "system_private", bool),
            from_time(document["started"]),
            tuple(_turn(turn, key()) for turn in document["turns"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _invalid(f"part of it is missing or of the wrong type ({error!r:.80})") from error


def _turn(document: dict[str, Any], key: str) -> Turn:
    for name in TEXTS:
        _expect(document, name, str)
    for name in FLAGS:  # without its mark, a private turn could go to the cloud by mistake
        _expect(document, name, bool)
    return turn_of({**document, "at": from_time(document["at"]), "key": key})


def as_time(at: float) -> str:
    """Return seconds since 1970 as ISO 8601, in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def from_time(text: str) -> float:
    """Return the seconds that `as_time` was given.

    Raises:
        ValueError: it is something else.
    """
    return datetime.fromisoformat(text).timestamp()


def _expect(document: dict[str, Any], name: str, kind: type) -> Any:
    value = document[name]
    if type(value) is not kind:
        raise ValueError(f"{name} is {value!r:.40}")
    return value


def _invalid(why: str) -> ShammahError:
    return ShammahError(
        "conversation_invalid",
        f"This file cannot be loaded: {why}.",
        "To make one that can: `/save NAME.jsonl`, or `shammah history export --format jsonl`.",
        exit_code=ExitCode.USAGE,
    )
