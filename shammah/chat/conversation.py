"""A conversation: a prompt, the turn that is made of it, and the turns so far.

The frontend owns it, and it is the same for every backend. Pure apart from the clocks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from shammah.bus.messages import (
    ChatMessage,
    Done,
    Failed,
    PromptProgress,
    Provenance,
    Ready,
    Retrying,
    Sampling,
    State,
    Timings,
    Token,
    Usage,
)
from shammah.bus.record import record
from shammah.privacy import Mark
from shammah.router.route import AUTO, Override, Question, RouteDecision, Target
from shammah.router.statistics import Label, loops
from shammah.settings.model import Settings

CORRECTED = "corrected"
"""The finish of an answer that the person has replaced with a better one."""
FAILED = "failed"
"""The finish of an answer that broke off."""
LEFT = "left"
"""The finish of an answer that the end of the program interrupted."""


@record
class Waiting:
    """The question waits for ``role``, which is in ``state``."""

    role: str
    state: State | None


@record
class Notice:
    """A sentence to show before the answer or within it; ``urgent``: whom to call."""

    text: str
    urgent: bool = False


Step = Notice | Waiting | RouteDecision | Retrying | PromptProgress | Token | Done | Failed
"""What a session yields for a question. A `RouteDecision` names the backend that is asked now."""


@record
class Prompt:
    """What to ask, of whom, and how. ``private``: the person says so. ``sources``: where the text
    came from, as `shammah.privacy.Rules.mark` has them. ``whole``: leave no earlier turn out, but
    fail. ``client``: the name of the program that asks for the person."""

    text: str
    private: bool = False
    sources: tuple[str | None, ...] = ()
    override: Override = Override()
    sampling: Sampling = Sampling()
    max_new_tokens: int | None = None
    whole: bool = False
    client: str = ""


def new_key() -> str:
    """Return a unique name for a turn."""
    return os.urandom(8).hex()


@record
class Turn:
    """A question and its answer, finished.

    Attributes:
        answer: as far as it came.
        private: neither half ever goes to the cloud.
        end: how it ended; ``None``: the program ended first.
        decision: the last one; ``None``: no backend was asked.
        waited_s: seconds until a backend was asked.
        local: any of the answer is not the cloud's.
        foreign: any of it is not the local model's.
        blind: whoever answered was sent nothing private.
        thoughts: what the model thought before it; not kept, and never sent to a model.
        outcome: its name in the statistics; empty: it has none.
        label: what the person has said of the answer, or done with it.
        given: the model's answer, where ``answer`` is the person's own.
        stored: target and reason of a turn from the history.
        at: when it ended, in seconds since 1970.
        key: names the turn, wherever it is stored.
        undone: removed from its conversation since; only the history has such turns.
        client: the program that asked, where that was another one.
    """

    question: str
    answer: str = ""
    private: bool = False
    end: Done | Failed | None = None
    decision: RouteDecision | None = None
    waited_s: float = 0.0
    local: bool = True
    foreign: bool = False
    blind: bool = False
    thoughts: str = ""
    outcome: str = ""
    label: Label | None = None
    given: str | None = None
    stored: tuple[str, str] = ("", "")
    at: float = 0.0
    key: str = ""
    undone: bool = False
    client: str = ""

    @property
    def route(self) -> tuple[str, str]:
        """Target and reason; empty: they are not known."""
        if self.decision is None:
            return self.stored
        return self.decision.answerer, self.decision.reason.value

    @property
    def provenance(self) -> Provenance | None:
        """Which model answered, if the answer ended."""
        by = self.end.provenance if isinstance(self.end, Done) else None
        return by if by is not None and by.role else None

    @property
    def usage(self) -> Usage:
        return self.end.usage if isinstance(self.end, Done) else Usage()

    @property
    def timings(self) -> Timings:
        return self.end.timings if isinstance(self.end, Done) else Timings()

    @property
    def corrected(self) -> bool:
        """Whether the answer is the person's own."""
        return self.given is not None

    @property
    def finish(self) -> str:
        """`Done.finish_reason`, ``cancelled``, `FAILED`, `LEFT` or `CORRECTED`."""
        if self.corrected:
            return CORRECTED
        match self.end:
            case Done(finish_reason=reason):
                return reason
            case Failed(code="cancelled"):
                return "cancelled"
            case Failed():
                return FAILED
        return LEFT

    @property
    def complete(self) -> bool:
        """Whether the answer was not cut short."""
        return self.corrected or (
            isinstance(self.end, Done) and self.finish not in ("cancelled", "timeout", "repetition")
        )

    @property
    def whole(self) -> bool:
        """Whether there is an answer that neither the person nor a failure has ended."""
        return self.corrected or (isinstance(self.end, Done) and self.finish != "cancelled")

    @property
    def told(self) -> bool:
        """Whether a model is sent this turn before later questions."""
        return bool(self.answer) and (self.complete or not loops(self.answer))

    def correct(self, better: str, *, private: bool) -> Turn:
        """The turn with ``better`` as its answer. One that is private stays so."""
        return replace(
            self,
            answer=better,
            private=self.private or private,
            given=self.answer if self.given is None else self.given,
            at=time.time(),
            key=new_key(),
        )


@dataclass(slots=True)
class TurnInProgress:
    """A question and its answer so far: the one place that collects it.

    Attributes:
        mark: whether the question is private, and by which rule.
        override: the prompt's, with that.
        conversation: the messages, of which the last is the question.
        question: what the router has read in it.
        blind: nothing private was sent to whoever has answered so far.
        tokens: how many were generated, by any backend.
        restarts: how often a backend has been asked for the rest.
        trims_nothing: the backend leaves no earlier turn out, since another could be asked.
        outcome: its name in the statistics.
        kept_as: the name of the conversation, if the history keeps it; else empty.
        clock: in seconds; ``asked_s``, ``sent_s``, ``first_s`` and ``last_s`` are times of it.
    """

    prompt: Prompt
    mark: Mark
    conversation: tuple[ChatMessage, ...] = ()
    question: Question = field(default_factory=Question)
    pieces: list[str] = field(default_factory=list)
    decision: RouteDecision | None = None
    end: Done | Failed | None = None
    waited_s: float = 0.0
    local: bool = False
    foreign: bool = False
    blind: bool = False
    thoughts: str = ""
    outcome: str = ""
    restarts: int = 0
    trims_nothing: bool = False
    kept_as: str = ""
    tokens: int = 0
    key: str = field(default_factory=new_key)
    clock: Callable[[], float] = time.monotonic
    override: Override = field(init=False)
    asked_s: float = field(init=False)
    sent_s: float = field(init=False)
    first_s: float = 0.0
    last_s: float = 0.0
    _before: int = 0
    _at_first: int = 0

    def __post_init__(self) -> None:
        private = self.mark.private or self.prompt.override.private
        self.override = replace(self.prompt.override, private=private)
        self.asked_s = self.sent_s = self.clock()

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self.pieces)

    @property
    def adapter(self) -> str:
        """The local model's, if any of the answer is its own; else empty."""
        return self.decision.adapter if self.local and self.decision is not None else ""

    @property
    def room(self) -> int | None:
        """Tokens that the rest may have."""
        limit = self.prompt.max_new_tokens
        return limit if not self.text or limit is None else max(1, limit - self.tokens)

    def send(self, *, blind: bool = False) -> None:
        """Note that a backend is asked now, for the answer or the rest of it; ``blind``: it is sent
        nothing private."""
        self.blind = blind and (self.blind or not self.text)
        self._before, self.sent_s = self.tokens, self.clock()

    def feed(self, step: Step) -> None:
        """Take in the next step."""
        match step:
            case RouteDecision():
                if self.decision is None:
                    self.waited_s = self.clock() - self.asked_s
                self.decision = step
            case Token():
                self.last_s = self.clock()
                if self.tokens == self._before:
                    self.first_s, self._at_first = self.last_s, step.index
                self.tokens = self._before + step.index
                if step.reasoning:
                    self.thoughts += step.text
                else:
                    target = Target.LOCAL if self.decision is None else self.decision.target
                    self.local = self.local or target is not Target.CLOUD
                    self.foreign = self.foreign or target is not Target.LOCAL
                    self.pieces.append(step.text)
            case Done() | Failed():
                self.end = step

    def cancelled(self, by: Provenance) -> Done:
        """The end of a cancelled answer whose worker does not report its counts in time. The tokens
        of its input are not known here."""
        count, span = self.tokens - self._before, self.last_s - self.first_s
        more = count - self._at_first  # what came with the first text took none of that time
        timings = Timings(
            ttft_s=self.first_s - self.sent_s if count else 0.0,
            total_s=self.clock() - self.sent_s,
            decode_tokens_per_second=more / span if more > 0 and span > 0 else 0.0,
        )
        return Done("", "cancelled", Usage(0, count), timings, by)

    def turn(self, *, private: bool = False) -> Turn:
        """The turn as it is now. ``private``: because of its answer."""
        cancelled = isinstance(self.end, Done) and self.end.finish_reason == "cancelled"
        return Turn(
            question=self.prompt.text,
            answer=self.text,
            private=private or self.override.private,
            end=self.end,
            decision=self.decision,
            waited_s=self.waited_s,
            local=self.local,
            foreign=self.foreign,
            blind=self.blind,
            thoughts=self.thoughts,
            outcome=self.outcome,
            label=Label.CANCEL if cancelled else None,
            at=time.time(),
            key=self.key,
            client=self.prompt.client,
        )


def origin(decision: RouteDecision, state: State | None, settings: Settings) -> Provenance:
    """Who is answering, as far as the local model's ``state`` says."""
    if decision.target is Target.CLOUD:
        engine = "anthropic" if settings.provider is None else "server"
        return Provenance("cloud", settings.cloud_model, engine=engine)
    if decision.target is Target.SERVER:
        model = decision.chosen.arm.model if decision.chosen else decision.who
        return Provenance("servers", model, engine="server")
    known = state if isinstance(state, Ready) else Ready("")
    return Provenance(
        role="inference",
        model=known.model,
        revision=known.revision,
        engine=known.engine,
        device=known.device,
        dtype=known.dtype,
        fallback=known.fallback,
        adapter=decision.adapter,
        quantization=known.quantization,
    )


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
        one is private too. A server that was sent nothing private (``blind``) knows none of it.
        """
        if turn.local and not turn.blind and self.holds_private:
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
