"""Keeps a model's thinking apart from its answer. Pure.

Models that think write it first, between two tags; with some, the template has already written the
opening one.
"""

from __future__ import annotations

from enum import Enum, auto

from workers.text.thought_tags import CLOSE, OPEN

CLOSING = f"\n{CLOSE}\n\n"
"""As models end their thoughts themselves."""


class _Part(Enum):
    BEGINNING = auto()
    """Nothing but the beginning of an opening tag has come."""
    REASONING = auto()
    GAP = auto()
    """Between the closing tag and the answer: line ends that belong to neither."""
    ANSWER = auto()


class ReasoningSplitter:
    """For one answer. ``begun``: the prompt ends with the opening tag."""

    def __init__(self, *, begun: bool) -> None:
        self._part = _Part.REASONING if begun else _Part.BEGINNING
        self._held = ""

    @property
    def thinking(self) -> bool:
        """Whether thoughts have begun and have not ended."""
        return self._part is _Part.REASONING

    @property
    def answering(self) -> bool:
        """Whether the answer has begun."""
        return self._part is _Part.ANSWER

    def add(self, text: str) -> tuple[str, str]:
        """The new reasoning and the new answer in ``text``."""
        text, self._held = self._held + text, ""
        reasoning = ""
        if self._part is _Part.BEGINNING:
            start = text.lstrip()
            if len(start) < len(OPEN) and OPEN.startswith(start):
                self._held = text
                return "", ""
            thinks = start.startswith(OPEN)
            self._part = _Part.REASONING if thinks else _Part.ANSWER
            text = start.removeprefix(OPEN) if thinks else text
        if self._part is _Part.REASONING:
            reasoning, found, text = text.partition(CLOSE)
            if not found:
                lengths = range(len(CLOSE) - 1, 0, -1)
                kept = next((n for n in lengths if reasoning.endswith(CLOSE[:n])), 0)
                self._held = reasoning[len(reasoning) - kept :]
                return reasoning[: len(reasoning) - kept], ""
            self._part = _Part.GAP
        if self._part is _Part.GAP:
            text = text.lstrip("\n")
            self._part = _Part.ANSWER if text else _Part.GAP
        return reasoning, text

    def finish(self) -> tuple[str, str]:
        """What was held back for nothing: the answer has ended."""
        held, self._held = self._held, ""
        return (held, "") if self._part is _Part.REASONING else ("", held)
