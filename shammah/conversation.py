"""The conversation, owned by the frontend and the same for every answerer. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from shammah.bus.messages import ChatMessage, Provenance


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer. ``complete`` is false if the answer was cut short."""

    question: str
    answer: str
    provenance: Provenance | None
    complete: bool = True


@dataclass(slots=True)
class Conversation:
    """The turns so far, and the system prompt that comes before them."""

    system: str = ""
    turns: list[Turn] = field(default_factory=list)

    def with_question(self, question: str) -> tuple[ChatMessage, ...]:
        """The messages for a model: system prompt, every answered turn once, the question.

        An answer that was cut short stays, as far as it came: the person has read it and may
        refer to it. A turn without any answer does not: two questions in a row are not a
        conversation that chat templates know.
        """
        messages = [ChatMessage("system", self.system)] if self.system else []
        for turn in self.turns:
            if turn.answer:
                messages.append(ChatMessage("user", turn.question))
                messages.append(ChatMessage("assistant", turn.answer))
        messages.append(ChatMessage("user", question))
        return tuple(messages)

    def add(self, turn: Turn) -> None:
        self.turns.append(turn)

    def clear(self) -> None:
        self.turns.clear()
