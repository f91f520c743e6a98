"""What is on disk of a conversation, and how a turn becomes that and comes back. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from shammah.bus.messages import Done, Failed, Provenance, Timings, Usage
from shammah.chat.turn import CORRECTED, FAILED, LEFT, Turn

BUSY_S = 5.0
"""What a writer of the history waits for another one, in seconds."""
TITLE = 72
"""Characters of a conversation's first question that stand for it in a list."""

Value = TypeVar("Value", Provenance, Usage, Timings)


@dataclass(frozen=True, slots=True)
class Record:
    """One finished turn.

    Attributes:
        key: names it, wherever it is kept.
        at: when it ended, in seconds since 1970.
        target: who was asked, ``local`` or ``cloud``; empty: it is not known.
        reason: why (`shammah.router.decision.Reason`).
        finish: ``Done.finish_reason``, `FAILED`, `LEFT`, or `CORRECTED`: the answer is the person's
            own, and the one before it was taken back.
        complete: false if the answer was cut short.
        private: neither half ever goes to the cloud.
        undone: the person has taken it out of the conversation since.
    """

    key: str
    at: float
    question: str
    answer: str
    target: str = ""
    model: str = ""
    reason: str = ""
    finish: str = ""
    complete: bool = True
    private: bool = False
    undone: bool = False
    provenance: Provenance | None = None
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)


def record_of(turn: Turn) -> Record:
    """What is kept of ``turn``."""
    target, reason = turn.stored
    if turn.decision is not None:
        target, reason = turn.decision.target.value, turn.decision.reason.value
    return Record(
        key=turn.key,
        at=turn.at,
        question=turn.question,
        answer=turn.answer,
        target=target,
        model=turn.provenance.model if turn.provenance else "",
        reason=reason,
        finish=turn.finish,
        complete=turn.complete,
        private=turn.private,
        provenance=turn.provenance,
        usage=turn.usage,
        timings=turn.timings,
    )


def turn_of(record: Record, *, private: bool, given: str) -> Turn:
    """The turn of which ``record`` was kept. ``given``: what was answered before the person put
    an answer in its place."""
    by = record.provenance
    if by is None:
        role = "cloud" if record.target == "cloud" else "inference"
        by = Provenance(role if record.model else "", record.model)
    end: Done | Failed | None = Done("", record.finish, record.usage, record.timings, by)
    if record.finish == LEFT:
        end = None
    elif record.finish == FAILED or (record.finish == "cancelled" and not record.provenance):
        end = Failed(record.finish, "")
    return Turn(
        question=record.question,
        answer=record.answer,
        private=private,
        end=end,
        local=record.target != "cloud",
        given=given if record.finish == CORRECTED else None,
        stored=(record.target, record.reason),
        at=record.at,
        key=record.key,
    )


@dataclass(frozen=True, slots=True)
class Summary:
    """A conversation in a list. ``turns`` counts those that were not undone, ``latest`` is when
    the last one ended; both times are seconds since 1970. ``private``: any turn is."""

    number: int
    started: float
    latest: float
    turns: int
    title: str
    private: bool = False


@dataclass(frozen=True, slots=True)
class StoredConversation:
    """A whole conversation as it is kept. ``number`` is 0 for one that has none yet."""

    number: int
    system: str = ""
    system_private: bool = False
    started: float = 0.0
    records: tuple[Record, ...] = ()

    @property
    def present(self) -> tuple[Record, ...]:
        """What was not undone: with this it is resumed."""
        return tuple(record for record in self.records if not record.undone)


@dataclass(frozen=True, slots=True)
class Hit:
    """A turn that was found. What fits stands between `MARK` and `END_MARK` in ``snippet``."""

    conversation: int
    record: Record
    snippet: str


MARK, END_MARK = "\x02", "\x03"


def title_of(question: str) -> str:
    """One line that stands for a conversation: its beginning, without what it brought along."""
    line = " ".join(question.strip().partition("\n\n")[0].split())
    return line if len(line) <= TITLE else line[: TITLE - 1] + "…"


def detail(record: Record) -> dict[str, Any]:
    """Who answered and what it took, as plain values."""
    provenance = asdict(record.provenance) if record.provenance else None
    usage, timings = asdict(record.usage), asdict(record.timings)
    return {"provenance": provenance, "usage": usage, "timings": timings}


def write_detail(record: Record) -> str:
    """The same as JSON."""
    return json.dumps(detail(record), ensure_ascii=False)


def read_detail(
    document: dict[str, Any],
) -> tuple[Provenance | None, Usage, Timings]:
    """What `detail` gave, perhaps of another version: unknown fields are left out.

    Raises:
        ValueError: it is not of this form.
    """
    provenance = document.get("provenance")
    return (
        _value(Provenance("", ""), provenance) if provenance else None,
        _value(Usage(), document.get("usage") or {}),
        _value(Timings(), document.get("timings") or {}),
    )


def _value(default: Value, document: Any) -> Value:
    if not isinstance(document, dict):
        raise ValueError("a table is none")
    known: dict[str, Any] = {}
    for name in (one.name for one in fields(default)):
        value = document.get(name, getattr(default, name))
        known[name] = _checked(name, value, getattr(default, name))
    return type(default)(**known)


def _checked(name: str, value: Any, default: Any) -> Any:
    """``value`` if it is of its default's kind; a number may be unknown where that is ``None``."""
    if isinstance(default, float) or default is None:
        fits = value is default or (isinstance(value, int | float) and not isinstance(value, bool))
    else:
        fits = type(value) is type(default)
    if not fits:
        raise ValueError(f"{name} is {value!r:.40}")
    return value
