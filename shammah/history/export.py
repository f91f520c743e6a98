"""Conversations as text, to keep elsewhere and to show. Pure.

JSON lines: one conversation a line, with everything that is known of it; it can be loaded again.
Markdown: questions and answers for people, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from shammah.chat.account import CORRECTED
from shammah.chat.record import Kept, Record, detail, read_detail, title_of
from shammah.errors import ExitCode, ShammahError

FORMAT, VERSION = "shammah-conversation", 1
FORMATS = ("jsonl", "markdown")


def write(kept: Kept, form: str) -> str:
    """``kept`` as one of `FORMATS`."""
    return write_json(kept) + "\n" if form == "jsonl" else write_markdown(kept)


def read(text: str, key: Callable[[], str]) -> Kept:
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
        return _read_lines(text, key)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _invalid(f"a part of it is missing or of the wrong kind ({error!r:.80})") from error


# --- JSON lines ---------------------------------------------------------------------------


def write_json(kept: Kept) -> str:
    """One line, without its end."""
    return json.dumps(as_document(kept), ensure_ascii=False)


def as_document(kept: Kept) -> dict[str, Any]:
    """``kept`` as plain values."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "id": kept.number,
        "started": as_time(kept.started),
        "system": kept.system,
        "system_private": kept.system_private,
        "turns": [turn_document(record) for record in kept.records],
    }


def turn_document(record: Record) -> dict[str, Any]:
    """A turn as plain values."""
    return {
        "at": as_time(record.at),
        "question": record.question,
        "answer": record.answer,
        **_facts(record),
        "undone": record.undone,
    }


def _facts(record: Record) -> dict[str, Any]:
    return {
        "target": record.target,
        "model": record.model,
        "reason": record.reason,
        "finish": record.finish,
        "complete": record.complete,
        "private": record.private,
        **detail(record),
    }


def _read_lines(text: str, key: Callable[[], str]) -> Kept:
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > 1:
        raise _invalid(f"it holds {len(lines)} conversations, and one can be loaded")
    document = json.loads(lines[0])
    if document.get("format") != FORMAT:
        raise _invalid("it is JSON, but no conversation of Shammah's")
    _check_version(document)
    return Kept(
        0,
        _expect(document, "system", str),
        _expect(document, "system_private", bool),
        from_time(document["started"]),
        tuple(_turn(turn, key) for turn in document["turns"]),
    )


def _turn(document: dict[str, Any], key: Callable[[], str]) -> Record:
    question, answer = _expect(document, "question", str), _expect(document, "answer", str)
    undone = _expect(document, "undone", bool)
    return _record(key(), document["at"], question, answer, document, undone=undone)


def _record(
    key: str, at: str, question: str, answer: str, facts: dict[str, Any], *, undone: bool = False
) -> Record:
    provenance, usage, timings = read_detail(facts)
    return Record(
        key=key,
        at=from_time(at),
        question=question,
        answer=answer,
        target=_expect(facts, "target", str),
        model=_expect(facts, "model", str),
        reason=_expect(facts, "reason", str),
        finish=_expect(facts, "finish", str),
        complete=_expect(facts, "complete", bool),
        # A turn whose mark is not there is no turn: it must not go to the cloud by mistake.
        private=_expect(facts, "private", bool),
        undone=undone,
        provenance=provenance,
        usage=usage,
        timings=timings,
    )


# --- Markdown -----------------------------------------------------------------------------


def write_markdown(kept: Kept) -> str:
    """A document; turns that were undone are not in it."""
    title = title_of(kept.present[0].question) if kept.present else "A conversation"
    parts = [f"# {title}"]
    for record in kept.present:
        private = " (private)" if record.private else ""
        parts += [f"## You{private}", record.question]
        parts += [f"## {_who(record)}", record.answer or "*No answer.*"]
    return "\n\n".join(parts) + "\n"


def _who(record: Record) -> str:
    who = record.model or record.target or "Shammah"
    if record.finish == CORRECTED:
        return f"{who} (corrected)"
    return who + ("" if record.complete else " (cut short)")


# --- values -------------------------------------------------------------------------------


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


def _check_version(document: dict[str, Any]) -> None:
    if _expect(document, "version", int) > VERSION:
        raise _invalid("a newer Shammah has written it")


def _invalid(why: str) -> ShammahError:
    return ShammahError(
        "conversation_invalid",
        f"This file cannot be loaded: {why}.",
        "`/save NAME.jsonl` and `shammah history export --format jsonl` write what can be loaded.",
        exit_code=ExitCode.USAGE,
    )
