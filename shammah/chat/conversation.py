"""The conversation, owned by the frontend and the same for every backend. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from shammah.bus.messages import ChatMessage
from shammah.chat.turn import LEFT, Turn
from shammah.router.route import AUTO
from shammah.router.statistics import Label


@dataclass(slots=True)
class Conversation:
    """The turns so far, and the system prompt that comes before them.

    ``adapter``: what the local model answers with (see `Wish.adapter`), until it begins anew.
    """

    system: str = ""
    turns: list[Turn] = field(default_factory=list)
    system_private: bool = False
    adapter: str = AUTO

    def with_question(self, question: str, *, private: bool = False) -> tuple[ChatMessage, ...]:
        """The messages for a model: system prompt, every answered turn once, the question.
        Those that are ``private`` are marked so; the gate keeps them from the cloud.

        An answer that was cut short stays, as far as it came: the person has read it and may
        refer to it; but one that was going round in circles is left out with its question, or
        the next would go on so. A question that failed is not repeated. One whose program ended
        before its answer began goes before the next question, in one message, since two of the
        user's in a row are not a conversation that chat templates know; not if it alone is
        private.
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
        """Append ``turn``; returns it as it was kept.

        The local model has seen the private turns and may repeat them, so a turn that it has
        answered after one is private, too, whatever was asked.
        """
        if turn.local and self.holds_private:
            turn = replace(turn, private=True)
        self.turns.append(turn)
        return turn

    def correct(self, better: str, *, private: bool) -> Turn:
        """Put ``better`` in the place of the last answer; returns the turn as it is then."""
        self.turns[-1] = self.turns[-1].correct(better, private=private)
        return self.turns[-1]

    def label(self, label: Label, outcome: str) -> None:
        """Note what the person says of the answer that the statistics know as ``outcome``."""
        for at, turn in enumerate(self.turns):
            if outcome and turn.outcome == outcome:
                self.turns[at] = replace(turn, label=label)

    @property
    def holds_private(self) -> bool:
        """Whether a model that is told everything is told something private."""
        system = bool(self.system) and self.system_private
        return system or self.private_turns > 0

    @property
    def private_turns(self) -> int:
        """How many turns the cloud will never be told."""
        return sum(turn.private and bool(turn.answer) for turn in self.turns)

    def clear(self) -> None:
        self.turns.clear()
        self.adapter = AUTO
