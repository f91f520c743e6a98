"""Conversations in words for a terminal. Pure."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

from shammah.chat.conversation import FAILED, LEFT, Turn
from shammah.history.record import (
    END_MARK,
    MARK,
    Hit,
    StoredConversation,
    Summary,
    title_of,
)
from shammah.router.explanation import REASONS
from shammah.router.route import Reason
from shammah.terminal.text import cells, cut, fold, printable

LEAST_LINES = 3
"""So much of a resumed conversation is shown on the smallest terminal."""
AROUND = 4
"""Lines of the screen that the rest needs: a hint, the prompt, the live line."""


def describe_summary(summary: Summary, columns: int | None = None) -> str:
    """``12  2026-11-25 16:40   3 turns  What are tides?``, cut to ``columns``."""
    turns = f"{summary.turns} turn" + (" " if summary.turns == 1 else "s")
    title = printable(summary.title) or "(nothing)"
    title = f"(private) {title}" if summary.private else title
    line = f"{summary.number:>4}  {describe_time(summary.latest)}  {turns:>9}  {title}"
    return line if columns is None else cut(line, columns)


def describe_more(listed: int, there: int, how: str) -> str:
    """``12 more: HOW``; empty: all are listed."""
    return f"{there - listed:,} more: {how}" if there > listed else ""


def describe_time(at: float) -> str:
    """Local time, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def describe_hit(hit: Hit, emphasize: Callable[[str], str] = str) -> str:
    """``12  2026-11-25 16:40  local: starter``, and below it what was found, emphasized."""
    turn = hit.turn
    pieces = re.split(f"{MARK}(.*?){END_MARK}", " ".join(hit.snippet.split()))
    pieces[1::2] = [emphasize(printable(found)) for found in pieces[1::2]]
    pieces[::2] = map(printable, pieces[::2])
    undone = " · undone" if turn.undone else ""
    head = f"{hit.conversation:>4}  {describe_time(turn.at)}  {describe_target(turn)}{undone}"
    return f"{head}\n      {''.join(pieces)}"


def describe_target(turn: Turn) -> str:
    """``local: starter``."""
    model = turn.provenance.model if turn.provenance else ""
    return printable(": ".join(filter(None, (turn.route[0], model)))) or "nobody"


_ENDS = {
    FAILED: "failed",
    LEFT: "interrupted",
    "cancelled": "cancelled",
    "repetition": "repeated itself",
}


def describe_end(turn: Turn) -> str:
    """Who answered, why and when, in one line."""
    parts = [describe_target(turn)]
    reason = turn.route[1]
    if reason in set(Reason):
        parts.append(REASONS[Reason(reason)])
    parts.append(describe_time(turn.at))
    if turn.client:
        parts.append(f"asked by {printable(turn.client)}")
    if turn.private and reason != Reason.PRIVATE:  # or it would be said twice
        parts.append("private")
    if not turn.complete:
        parts.append(_ENDS.get(turn.finish, "cut short"))
    if not turn.answer:
        parts.append("called a tool" if turn.finish == "tool_call" else "no answer")
    if turn.corrected:
        parts.append("corrected by you")
    if turn.undone:
        parts.append("undone")
    return " · ".join(parts)


def describe_turn(turn: Turn) -> Iterator[str]:
    """The lines of a turn, without what a terminal would obey."""
    question = printable(turn.question).split("\n")
    yield f"> {question[0]}"
    yield from question[1:]
    if turn.answer:
        yield from printable(turn.answer).split("\n")


def describe_resumed(stored: StoredConversation, what: str) -> str:
    """``what`` with which conversation it is, and what becomes of its last question."""
    present = stored.present
    if not present:
        return f"{what}, which has no turns."
    title, when = printable(title_of(present[0].question)), describe_time(present[-1].at)
    said = f"{what} of {when} ({describe_turns(len(present))}): {title}"
    if present[-1].finish == LEFT and not present[-1].answer:
        said += "\nIts last question has no answer yet, and is sent with your next one."
    return said


def describe_turns(number: int) -> str:
    """``1 turn``, ``12 turns``."""
    return f"{number:,} turn" + ("" if number == 1 else "s")


def recap(stored: StoredConversation, columns: int, rows: int) -> list[str]:
    """The end of a conversation, as far as it has place on a screen of ``columns`` by ``rows``."""
    room = max(LEAST_LINES, rows - AROUND)
    shown: list[str] = []
    for turn in reversed(stored.present):
        lines = fold("\n".join([*describe_turn(turn), describe_end(turn)]), columns)
        for line in reversed(lines.split("\n")):
            room -= max(1, -(-cells(line) // max(1, columns)))
            if room < 0:
                return ["…", *reversed(shown)]
            shown.append(line)
    return list(reversed(shown))
