"""Two answers to one question, and which was better. Pure."""

from __future__ import annotations

from enum import StrEnum

from shammah.router.statistics import Label


class Verdict(StrEnum):
    """What a person says of a pair."""

    FIRST = "1"
    SECOND = "2"
    SAME = "same"
    SKIP = "skip"


QUESTION = "Which was better? [1], [2], [s]ame; Enter skips: "


def parse_verdict(line: str | None) -> Verdict:
    """What was typed. Anything but a clear word says nothing."""
    match (line or "").strip().lower():
        case "1" | "first":
            return Verdict.FIRST
        case "2" | "second":
            return Verdict.SECOND
        case "s" | "same":
            return Verdict.SAME
    return Verdict.SKIP


def labels(verdict: Verdict, before: Label | None) -> tuple[Label | None, Label | None]:
    """What a verdict says of the first answer and of the second; ``None``: nothing.

    ``before``: what the person has said of the first. Who has an answer given once more and does
    not say which was better, was not content with the first; a plain word of before is stronger
    than that.
    """
    match verdict:
        case Verdict.FIRST:
            return Label.BETTER, Label.WORSE
        case Verdict.SECOND:
            return Label.WORSE, Label.BETTER
        case Verdict.SAME:
            return Label.SAME, Label.SAME
    judged = before is not None and before not in (Label.CANCEL, Label.REDO)
    return (None if judged else Label.REDO), None
