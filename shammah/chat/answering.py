"""One answer as it comes, and what the conversation and the history keep of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from shammah.bus.messages import Done, Failed, Timings, Token, Usage
from shammah.chat.account import Account
from shammah.chat.answer_line import describe_empty
from shammah.chat.conversation import Turn
from shammah.chat.record import FAILED, LEFT, Record
from shammah.chat.session import Routed, Step
from shammah.router.decision import RouteDecision, Target

CUT_SHORT = frozenset({"cancelled", "timeout"})
"""The ends of an answer that has more to say, and may be whole as far as the model is asked."""


@dataclass(slots=True)
class Answering:
    """A question, and what has come of its answer so far.

    Attributes:
        private: the question's mark.
        outcome: what the statistics call the answer that has just ended.
        local: any of the answer is the local model's.
        thought: the model has thought aloud.
        end: how it ended; ``None``: not yet, or the program is left in its midst.
        account: who was asked and what became of it.
        key: names the turn, wherever it is kept.
    """

    question: str
    private: bool
    outcome: Callable[[], str]
    pieces: list[str] = field(default_factory=list)
    local: bool = False
    thought: bool = False
    decision: RouteDecision | None = None
    end: Done | Failed | None = None
    account: Account = field(default_factory=Account)
    asked_s: float = field(default_factory=time.monotonic)
    key: str = field(default_factory=lambda: new_key())

    def watch(self, steps: Iterable[Step]) -> Iterator[Step]:
        """``steps``, each noted before it is passed on."""
        for step in steps:
            match step:
                case Routed(decision):
                    self.decision = decision
                    waited_s = time.monotonic() - self.asked_s
                    self.account = self.account.routed(decision, waited_s)
                case Token(reasoning=True):
                    self.thought = True
                case Token(text=piece):
                    local = self.decision is None or self.decision.target is Target.LOCAL
                    self.local = self.local or local
                    self.pieces.append(piece)
                case Done() | Failed():
                    self.end = step
                    self.account = self.account.ended(step, self.outcome())
            yield step

    @property
    def answer(self) -> str:
        return "".join(self.pieces)

    @property
    def empty(self) -> Failed | None:
        """Why an answer that was not broken off has no text; ``None``: it has some."""
        if not isinstance(self.end, Done) or self.end.finish_reason == "cancelled":
            return None
        return None if self.answer.strip() else describe_empty(self.end, thought=self.thought)

    @property
    def adapter(self) -> str:
        """That of the local model, if any of the answer is its own; else empty."""
        return self.decision.adapter if self.local and self.decision is not None else ""

    @property
    def finish(self) -> str:
        """As `shammah.chat.record.Record` has it."""
        match self.end:
            case Done(finish_reason=reason):
                return reason
            case Failed(code="cancelled"):
                return "cancelled"
            case Failed():
                return FAILED
        return LEFT

    def turn(self, *, answer_private: bool) -> Turn:
        """What the conversation keeps; its answer is empty if there was none."""
        done = self.end if isinstance(self.end, Done) else None
        return Turn(
            self.question,
            self.answer,
            done.provenance if done else None,
            done is not None and self.finish not in CUT_SHORT,
            self.private or answer_private,
            self.account,
        )

    def record(self, turn: Turn, at: float) -> Record:
        """What the history keeps of ``turn``, as the conversation has it; ``at``: now."""
        done = self.end if isinstance(self.end, Done) else None
        decision = self.decision
        return Record(
            key=self.key,
            at=at,
            question=turn.question,
            answer=turn.answer,
            target=decision.target.value if decision else "",
            model=done.provenance.model if done else "",
            reason=decision.reason.value if decision else "",
            finish=self.finish,
            complete=turn.complete,
            private=turn.private,
            provenance=turn.provenance,
            usage=done.usage if done else Usage(),
            timings=done.timings if done else Timings(),
        )


def new_key() -> str:
    """A name for a turn that no other has."""
    return os.urandom(8).hex()
