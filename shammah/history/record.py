"""What is stored of a conversation, and how a turn becomes that and comes back. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from shammah.bus.messages import Done, Failed, Provenance, Timings, Usage
from shammah.chat.conversation import CORRECTED, FAILED, LEFT, Turn

BUSY_S = 5.0
"""How long a writer of the history waits for another one, in seconds."""
TITLE = 72
"""Characters of a conversation's title in a list."""

TEXTS = ("question", "answer", "target", "model", "reason", "finish")
FLAGS = ("complete", "private", "undone")
DETAIL = ("provenance", "usage", "timings", "client", "foreign")

Value = TypeVar("Value", Provenance, Usage, Timings)


def facts_of(turn: Turn) -> dict[str, Any]:
    """What is stored of ``turn``, as plain values: ``key``, ``at``, `TEXTS`, `FLAGS`, `DETAIL`."""
    target, reason = turn.route
    by = turn.provenance
    return {
        "key": turn.key,
        "at": turn.at,
        "question": turn.question,
        "answer": turn.answer,
        "target": target,
        "model": by.model if by else "",
        "reason": reason,
        "finish": turn.finish,
        "complete": turn.complete,
        "private": turn.private,
        "undone": turn.undone,
        "provenance": asdict(by) if by else None,
        "usage": asdict(turn.usage),
        "timings": asdict(turn.timings),
        "client": turn.client,
        "foreign": turn.foreign,
    }


def turn_of(facts: Mapping[str, Any]) -> Turn:
    """The turn that `facts_of` took apart, perhaps in another version of Shammah. What was
    answered before the person put an answer in its place is in another turn, so ``given`` is
    empty.

    Raises:
        ValueError: a part of `DETAIL` is of another form.
    """
    target, finish, model = facts["target"], facts["finish"], facts["model"]
    kind = target.partition(":")[0]
    role = {"cloud": "cloud", "server": "servers"}.get(kind, "inference")
    by = Provenance(role if model else "", model)
    if known := facts.get("provenance"):
        by = _value(Provenance("", ""), known)
    usage = _value(Usage(), facts.get("usage") or {})
    timings = _value(Timings(), facts.get("timings") or {})
    end: Done | Failed | None = Done("", finish, usage, timings, by)
    if finish == LEFT:
        end = None
    elif finish == FAILED or (finish == "cancelled" and not known):
        end = Failed(finish, "")
    return Turn(
        question=facts["question"],
        answer=facts["answer"],
        private=facts["private"],
        end=end,
        local=target != "cloud",
        # Of a turn of before: whether Claude had begun the answer is not known.
        foreign=bool(facts.get("foreign", target != "local" or facts["reason"] == "cloud_failed")),
        # Had it seen what was private before, its answer would be, too.
        blind=kind == "server" and not facts["private"],
        given="" if finish == CORRECTED else None,
        stored=(target, facts["reason"]),
        at=facts["at"],
        key=facts["key"],
        undone=facts["undone"],
        client=str(facts.get("client") or ""),
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
    """A whole conversation. ``number`` is 0 for one that has none yet."""

    number: int
    system: str = ""
    system_private: bool = False
    started: float = 0.0
    turns: tuple[Turn, ...] = ()

    @property
    def present(self) -> tuple[Turn, ...]:
        """What was not undone: with this it is resumed."""
        return tuple(turn for turn in self.turns if not turn.undone)


@dataclass(frozen=True, slots=True)
class Hit:
    """A turn that was found. In ``snippet`` the matches stand between `MARK` and `END_MARK`."""

    conversation: int
    turn: Turn
    snippet: str


MARK, END_MARK = "\x02", "\x03"


def title_of(question: str) -> str:
    """Return one line for a conversation: its first question, without attachments."""
    line = " ".join(question.strip().partition("\n\n")[0].split())
    return line if len(line) <= TITLE else line[: TITLE - 1] + "…"


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
