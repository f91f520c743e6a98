"""The conversation, owned by the frontend and the same for every answerer. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from shammah.bus.messages import ChatMessage, Provenance
from shammah.chat.account import CORRECTED, LEFT, Account
from shammah.router.quality import loops
from shammah.router.route import AUTO
from shammah.router.statistics import Label


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer. ``complete`` is false if the answer was cut short;
    ``private``: neither ever goes to the cloud. ``account``: what became of the question.
    ``given``: what was answered, where ``answer`` is the person's own; else empty."""

    question: str
    answer: str
    provenance: Provenance | None
    complete: bool = True
    private: bool = False
    account: Account = field(default_factory=Account)
    given: str = ""

    @property
    def told(self) -> bool:
        """Whether later questions come after this turn, for a model."""
        return bool(self.answer) and (self.complete or not loops(self.answer))

    @property
    def corrected(self) -> bool:
        """Whether the answer is the person's own."""
        return self.account.finish == CORRECTED


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
        for turn in (*self.turns, Turn(question, "", None, private=private)):
            asked = turn.question
            if lost is not None and (turn.private or not lost.private):
                asked = f"{lost.question}\n\n{asked}"
            if turn.told:
                messages.append(ChatMessage("user", asked, turn.private))
                messages.append(ChatMessage("assistant", turn.answer, turn.private))
                lost = None
            elif turn.account.finish == LEFT:
                lost = replace(turn, question=asked)
        messages.append(ChatMessage("user", asked, private))
        return tuple(messages)

    def add(self, turn: Turn, *, local: bool = True) -> Turn:
        """Append ``turn``; returns it as it was kept.

        ``local``: any of the answer is the local model's. That model has seen the private turns
        and may repeat them, so such a turn is private, too, whatever was asked.
        """
        if local and self.holds_private:
            turn = replace(turn, private=True)
        self.turns.append(turn)
        return turn

    def correct(self, better: str, *, private: bool) -> Turn:
        """Put ``better`` in the place of the last answer; returns the turn as it is then. One that
        is private stays so."""
        turn = self.turns[-1]
        self.turns[-1] = replace(
            turn,
            answer=better,
            complete=True,
            private=turn.private or private,
            account=replace(turn.account, finish=CORRECTED),
            given=turn.given or turn.answer,
        )
        return self.turns[-1]

    def label(self, label: Label, outcome: str) -> None:
        """Note what the person says of the answer that the statistics know as ``outcome``."""
        for at, turn in enumerate(self.turns):
            if outcome and turn.account.outcome == outcome:
                self.turns[at] = replace(turn, account=replace(turn.account, label=label))

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
