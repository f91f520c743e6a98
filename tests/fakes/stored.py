"""Turns as the history gives them back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from shammah.bus.messages import Provenance, Timings, Usage
from shammah.chat.conversation import Turn
from shammah.history.record import turn_of


def stored_turn(
    key: str,
    at: float,
    question: str,
    answer: str,
    *,
    by: Provenance | None = None,
    usage: Usage = Usage(),  # noqa: B008 - frozen
    timings: Timings = Timings(),  # noqa: B008 - frozen
    **facts: Any,
) -> Turn:
    """A turn that ``by`` answered in full. ``facts``: others of those that are stored."""
    usual = {
        "target": "cloud" if by and by.role == "cloud" else "local",
        "model": by.model if by else "",
        "reason": "model_ready",
        "finish": "stop",
        "private": False,
        "undone": False,
    }
    texts = {"key": key, "at": at, "question": question, "answer": answer}
    provenance = asdict(by) if by else None
    detail = {"provenance": provenance, "usage": asdict(usage), "timings": asdict(timings)}
    return turn_of({**usual, **texts, **detail, **facts})
