"""What the person said of answers, as ``feedback.jsonl`` in the home. Standard library only.

A line says one thing of one turn; the lines of a turn, read together, make at most one example
to learn from. An answer that was called bad is never one: only what should have been said is.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from shammah.bus.messages import ChatMessage
from shammah.errors import ShammahError
from shammah.learning.examples import (
    HIGH,
    MEDIUM,
    MOST_WEIGHT,
    NORMAL,
    ROLES,
    WEIGHTS,
    Example,
    Source,
)
from shammah.storage.files import append_line, open_file

NAME = "feedback.jsonl"
LOCAL = "inference"
"""The role of this machine's own model."""

Kind = Literal["good", "bad", "fix", "accepted", "weight"]
"""What a line says: the answer was good, or bad; something else would have been better; another
model's answer was taken instead; how much the turn counts."""

_USUAL = {"good": NORMAL, "accepted": MEDIUM, "fix": HIGH}
"""What counts how much, unless the person says otherwise."""


@dataclass(frozen=True, slots=True)
class JudgedTurn:
    """A question in its conversation, and the answer that is spoken of.

    ``role`` and ``model`` gave the answer, with ``adapter`` if any; ``foreign``: any of it is of
    another model than this machine's own. ``messages`` end with the question; ``private``: the
    turn is.
    """

    messages: tuple[ChatMessage, ...]
    answer: str
    role: str = ""
    model: str = ""
    adapter: str = ""
    private: bool = False
    foreign: bool = False

    @property
    def source(self) -> Source:
        """Who wrote the answer. What is not known to be the local model's is not."""
        return "local" if self.role == LOCAL and not self.foreign else "cloud"

    @property
    def id(self) -> str:
        """The same for the same question and answer."""
        told = [[m.role, m.content] for m in self.messages] + [self.answer]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


@dataclass(slots=True)
class Verdict:
    """All that was said of one turn: ``kind`` is the last thing, ``better`` the answer that it
    should have had, ``weight`` as the person wants it (0: as usual), ``notes`` what is wrong."""

    turn: JudgedTurn
    kind: str = ""
    better: str = ""
    weight: float = 0.0
    notes: list[str] = field(default_factory=list)

    def example(self) -> Example | None:
        """What is to be learnt from it."""
        response = (self.turn.answer if self.kind == "good" else self.better).strip()
        question = self.turn.messages[-1].content if self.turn.messages else ""
        if self.kind not in _USUAL or not response or not question.strip():
            return None
        prompt = tuple((m.role, m.content) for m in self.turn.messages)
        weight = self.weight or _USUAL[self.kind]
        # Another model's answer is only ever taken (`accepted`) from the cloud.
        by: dict[str, Source] = {"good": self.turn.source, "fix": "person", "accepted": "cloud"}
        return Example(prompt, response, weight, self.turn.private, by[self.kind])


class Feedback:
    """The file of one home. Several processes may write to it."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = home / NAME
        self._clock = clock

    def note(
        self,
        turn: JudgedTurn,
        kind: Kind,
        *,
        better: str = "",
        why: str = "",
        weight: str = "",
        private: bool = False,
    ) -> None:
        """Write down what the person says of a turn.

        Args:
            turn: the question and its answer.
            kind: what is said.
            better: the answer that it should have had (``fix``, ``accepted``).
            why: what is wrong with it (``bad``).
            weight: one of `WEIGHTS` (``weight``).
            private: whether ``better`` is; the turn has a mark of its own.

        Raises:
            ShammahError: ``feedback_unwritable``.
        """
        now = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="seconds")
        document = {
            "time": now.replace("+00:00", "Z"),
            "turn": turn.id,
            "kind": kind,
            "messages": [[m.role, m.content] for m in turn.messages],
            "answer": turn.answer,
            "role": turn.role,
            "model": turn.model,
            "adapter": turn.adapter,
            "source": turn.source,
            "private": turn.private or private or any(m.private for m in turn.messages),
            "better": better,
            "note": why,
            "weight": WEIGHTS[weight] if weight else 0.0,
        }
        line = json.dumps(document, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        try:
            append_line(self.path, line)
        except OSError as error:
            raise ShammahError(
                "feedback_unwritable",
                f"This cannot be written down ({error.strerror}: {self.path}).",
                "Free some space, or fix the permissions of the file.",
            ) from error

    def verdicts(self) -> tuple[Verdict, ...]:
        """What is said of each turn, in the order in which they were first spoken of.

        Lines that cannot be read are skipped: a crash may have torn the last one.

        Raises:
            ShammahError: ``feedback_unreadable``.
        """
        return fold(filter(None, map(_parse, self._lines())))

    def _lines(self) -> list[bytes]:
        try:
            with open_file(self.path) as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ShammahError(
                "feedback_unreadable",
                f"The feedback cannot be read ({error.strerror}: {self.path}).",
                "Fix the permissions of the file.",
            ) from error

    def examples(self, *, from_cloud: bool) -> tuple[Example, ...]:
        """What is to be learnt from all of it.

        Args:
            from_cloud: also answers of other models than this machine's own, whose makers may
                forbid it (`TrainSettings.from_cloud`).

        Raises:
            ShammahError: ``feedback_unreadable``.
        """
        found = filter(None, (verdict.example() for verdict in self.verdicts()))
        return tuple(one for one in found if from_cloud or one.source != "cloud")

    def describe_damage(self) -> str:
        """Which lines cannot be read, in a sentence; empty: there is none.

        Raises:
            ShammahError: ``feedback_unreadable``.
        """
        numbered = enumerate(self._lines(), 1)
        damaged = [number for number, line in numbered if line.strip() and _parse(line) is None]
        if not damaged:
            return ""
        if len(damaged) == 1:
            return f"Line {damaged[0]} of {self.path} cannot be read and was skipped."
        return (
            f"{len(damaged):,} lines of {self.path} cannot be read and were skipped: the first "
            f"is line {damaged[0]}."
        )


def fold(lines: Iterable[tuple[JudgedTurn, dict[str, Any]]]) -> tuple[Verdict, ...]:
    """The lines of each turn taken together, the later ones over the earlier."""
    verdicts: dict[str, Verdict] = {}
    for turn, document in lines:
        verdict = verdicts.setdefault(document["turn"], Verdict(turn))
        kind = document["kind"]
        if kind == "weight":
            verdict.weight = document["weight"]
            continue
        verdict.kind = kind
        verdict.turn = turn
        if document["better"]:
            verdict.better = document["better"]
        if document["note"]:
            verdict.notes.append(document["note"])
    return tuple(verdicts.values())


def _parse(line: bytes) -> tuple[JudgedTurn, dict[str, Any]] | None:
    try:
        document = json.loads(line)
        texts = ("turn", "kind", "answer", "role", "model", "adapter", "better", "note")
        if any(type(document[name]) is not str for name in texts):
            return None
        if type(document["private"]) is not bool or type(document["weight"]) not in (int, float):
            return None
        if not 0 <= document["weight"] <= MOST_WEIGHT:
            return None
        json.dumps(document, ensure_ascii=False).encode()  # refuses half of a character
        messages = _messages(document["messages"], private=document["private"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    names = ("answer", "role", "model", "adapter", "private")
    foreign = document.get("source", "local") != "local"  # lines of before have none
    return JudgedTurn(messages, **{n: document[n] for n in names}, foreign=foreign), document


def _messages(given: Sequence[Sequence[Any]], *, private: bool) -> tuple[ChatMessage, ...]:
    found = []
    for role, content in given:
        if role not in ROLES or type(content) is not str:
            raise ValueError("not a message")
        found.append(ChatMessage(role, content, private))
    return tuple(found)
