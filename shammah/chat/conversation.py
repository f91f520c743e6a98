"""The conversation, owned by the frontend and the same for every backend. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from shammah.bus.messages import ChatMessage
from shammah.chat.turn import LEFT, Turn
from shammah.router.route import AUTO
from shammah.router.statistics import Label


@dataclass(slots=True)
class Conversation:
    """The turns so far, the system prompt before them, and the adapter that the local model answers
    with (see `Override.adapter`)."""

    system: str = ""
    turns: list[Turn] = field(default_factory=list)
    system_private: bool = False
    adapter: str = AUTO

    def with_question(self, question: str, *, private: bool = False) -> tuple[ChatMessage, ...]:
        """The marked messages for a model: system prompt, every answered turn once, the question.

        An answer that was cut short stays: the person has read it and may refer to it. One that
        was repeating itself is left out with its question, or the next would continue so. A
        question that failed is not repeated. One whose program ended before its answer began goes
        before the next question, in one message, since chat templates know no two user messages
        in a row; not if it alone is private.
        """
        messages: list[ChatMessage] = []
        if self.system:
            messages.append(ChatMessage("system", self.system, self.system_private))
        lost: Turn | None = None
        for turn in (*self.turns, Turn(question, private=private)):
            asked = turn.question
            if lost is not None and (turn.private or not lost.private):
                asked = f"{lost.question}\n\n{asked}"
            if turn.told:
                messages.append(ChatMessage("user", asked, turn.private))
                messages.append(ChatMessage("assistant", turn.answer, turn.private))
                lost = None
            elif turn.finish == LEFT:
                lost = replace(turn, question=asked)
        messages.append(ChatMessage("user", asked, private))
        return tuple(messages)

    def add(self, turn: Turn) -> Turn:
        """Append ``turn``, and return it as appended.

        The local model has seen the private turns and may repeat them, so what it answers after
        one is private too.
        """
        if turn.local and self.holds_private:
            turn = replace(turn, private=True)
        self.turns.append(turn)
        return turn

    def correct(self, better: str, *, private: bool) -> Turn:
        """Replace the last answer with ``better``, and return the turn."""
        self.turns[-1] = self.turns[-1].correct(better, private=private)
        return self.turns[-1]

    def label(self, label: Label, outcome: str) -> None:
        """Note what the person says of the answer that the statistics name ``outcome``."""
        for at, turn in enumerate(self.turns):
            if outcome and turn.outcome == outcome:
                self.turns[at] = replace(turn, label=label)

    @property
    def holds_private(self) -> bool:
        """Whether the whole conversation holds anything private."""
        system = bool(self.system) and self.system_private
        return system or self.private_turns > 0

    @property
    def private_turns(self) -> int:
        """How many turns never go to the cloud."""
        return sum(turn.private and bool(turn.answer) for turn in self.turns)

    def clear(self) -> None:
        self.turns.clear()
        self.adapter = AUTO
