"""Conversations in files of the person's own, to keep elsewhere and to show.

JSON lines: one conversation a line, with everything that is known of it; it can be loaded again.
Markdown: questions and answers for people, and nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shammah.chat.turn import Turn
from shammah.errors import ExitCode, ShammahError, UsageError
from shammah.history.record import (
    FLAGS,
    TEXTS,
    StoredConversation,
    facts_of,
    title_of,
    turn_of,
)
from shammah.storage.files import new_file

FORMAT, VERSION = "shammah-conversation", 1
SUFFIXES = {".md": "markdown", ".markdown": "markdown", ".jsonl": "jsonl"}
LARGEST = 64 * 2**20
"""Bytes of a file that is read as a conversation."""


def form_of(path: Path) -> str:
    """``jsonl`` or ``markdown``, as a file's name asks for.

    Raises:
        ShammahError: ``usage``.
    """
    form = SUFFIXES.get(path.suffix.lower())
    if form is None:
        raise UsageError(
            f"{path.name!r:.60} ends neither in .md nor in .jsonl.",
            "The end of the name says what to write: Markdown or JSON lines.",
        )
    return form


def write(kept: StoredConversation, form: str) -> str:
    """``kept`` in a form that `form_of` names."""
    return write_json(kept) + "\n" if form == "jsonl" else write_markdown(kept)


def write_file(path: Path, parts: Iterable[str], *, overwrite: bool) -> int:
    """Write the parts whole or not at all, for their owner alone; returns how many they were.

    Raises:
        ShammahError: ``file_exists``, ``file_unwritable``; what was there is as it was.
    """
    if os.path.lexists(path) and not overwrite:
        raise ShammahError("file_exists", f"{path} exists.", "Nothing was written.")
    count = 0
    try:
        with new_file(path) as draft, draft.open("wb") as file:
            for count, part in enumerate(parts, 1):  # noqa: B007 - the last one is returned
                file.write(part.encode("utf-8", "replace"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ShammahError(
            "file_unwritable", f"{path} cannot be written ({why}).", "Name another place."
        ) from error
    return count


def write_markdown(kept: StoredConversation) -> str:
    """A document; turns that were undone are not in it."""
    title = title_of(kept.present[0].question) if kept.present else "A conversation"
    parts = [f"# {title}"]
    for turn in kept.present:
        private = " (private)" if turn.private else ""
        by = turn.provenance.model if turn.provenance else turn.route[0] or "Shammah"
        how = " (corrected)" if turn.corrected else "" if turn.complete else " (cut short)"
        parts += [f"## You{private}", turn.question, f"## {by}{how}", turn.answer or "*No answer.*"]
    return "\n\n".join(parts) + "\n"


def write_json(kept: StoredConversation) -> str:
    """One line, without its end."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "id": kept.number,
        "started": as_time(kept.started),
        "system": kept.system,
        "system_private": kept.system_private,
        "turns": [turn_document(turn) for turn in kept.turns],
    }
    return json.dumps(document, ensure_ascii=False)


def turn_document(turn: Turn) -> dict[str, Any]:
    """Return a turn as plain values."""
    facts = facts_of(turn)
    del facts["key"]
    return {**facts, "at": as_time(turn.at)}


def read_file(path: Path) -> str:
    """The text of a file.

    Raises:
        ShammahError: ``file_unreadable``.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise _unreadable(path, f"it is larger than {LARGEST >> 20} MiB")
        if not path.is_file():
            raise _unreadable(path, "it is not a file")
        # As it is: an end of line inside a text is part of it.
        with path.open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise _unreadable(path, "it is not UTF-8 text") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from error


def read(text: str, key: Callable[[], str]) -> StoredConversation:
    """What `write_json` has written. Its number is 0.

    Args:
        text: the whole file.
        key: makes a name for each turn.

    Raises:
        ShammahError: ``conversation_invalid``: it is something else, or more than one.
    """
    text = text.removeprefix("\ufeff")
    try:
        if not text.lstrip().startswith("{"):
            raise _invalid("it is no conversation that Shammah has saved as JSON lines")
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) > 1:
            raise _invalid(f"it holds {len(lines)} conversations, and one can be loaded")
        document = json.loads(lines[0])
        if document.get("format") != FORMAT:
            raise _invalid("it is JSON, but no conversation of Shammah's")
        if _expect(document, "version", int) > VERSION:
            raise _invalid("a newer Shammah has written it")
        return StoredConversation(
            0,
            _expect(document, "system", str),
            _expect(document, "system_private", bool),
            from_time(document["started"]),
            tuple(_turn(turn, key()) for turn in document["turns"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _invalid(f"a part of it is missing or of the wrong kind ({error!r:.80})") from error


def _turn(document: dict[str, Any], key: str) -> Turn:
    for name in TEXTS:
        _expect(document, name, str)
    for name in FLAGS:  # without its mark, a private turn could go to the cloud by mistake
        _expect(document, name, bool)
    return turn_of({**document, "at": from_time(document["at"]), "key": key})


def as_time(at: float) -> str:
    """Seconds since 1970 as ISO 8601, in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def from_time(text: str) -> float:
    """What `as_time` gave.

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
        "`/save NAME.jsonl` and `shammah history export --format jsonl` write what can be loaded.",
        exit_code=ExitCode.USAGE,
    )


def _unreadable(path: Path, why: str) -> ShammahError:
    return ShammahError("file_unreadable", f"{path} cannot be read: {why}.")
