"""Runs the turns of one conversation, for any sink."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from shammah.bus.messages import Done, PromptProgress, Retrying, Token
from shammah.chat.conversation import (
    Conversation,
    Notice,
    Prompt,
    Step,
    Turn,
    TurnInProgress,
    Waiting,
)
from shammah.chat.session import Session
from shammah.router.route import AUTO, RouteDecision, Target
from shammah.terminal.wording import (
    describe_prompt,
    describe_retrying,
    describe_state,
    describe_thinking,
    describe_unseen,
)


class Sink(Protocol):
    """Shows an answer: on a terminal, in a pipe, over a connection."""

    def notice(self, text: str, *, urgent: bool) -> None:
        """Show a sentence before the answer or within it; ``urgent``: whom to call."""

    def progress(self, text: str, step: Step) -> None:
        """Show ``text``, which describes ``step``, until the answer begins."""

    def thought(self, text: str) -> None:
        """Show more of what the model thinks before the answer."""

    def piece(self, text: str, turn: TurnInProgress) -> None:
        """Show more of the answer."""

    def ended(self, turn: Turn) -> None:
        """The turn is over, and stored."""


class Keeper(Protocol):
    """Stores turns (`shammah.history.recorder.Recorder`)."""

    def begin(self, turn: Turn, conversation: Conversation) -> None: ...

    def settle(self) -> bool: ...

    def keep(self, turn: Turn, conversation: Conversation) -> None: ...


class TurnRunner:
    """Asks the questions of one conversation, and stores each turn before it shows it as finished.

    Attributes:
        in_hand: the turn that is being answered, if any.
    """

    def __init__(self, session: Session, conversation: Conversation, history: Keeper) -> None:
        self.in_hand: TurnInProgress | None = None
        self._session = session
        self._conversation = conversation
        self._history = history

    def begin(self, prompt: Prompt) -> None:
        """Begin a turn, and judge whether it is private; `answer` is next."""
        override = prompt.override
        if override.adapter == AUTO:
            override = replace(override, adapter=self._conversation.adapter)
        private = prompt.private or override.private
        mark = self._session.gate.judge(prompt.text, private=private, sources=prompt.sources)
        self.in_hand = TurnInProgress(replace(prompt, override=override), mark)

    def answer(self, sink: Sink) -> None:
        """Answer the turn in hand, and store it. An exception of the sink or of a signal ends it;
        what has come by then is stored."""
        turn, talk = self.in_hand, self._conversation
        assert turn is not None
        prompt = turn.prompt
        shows = self._session.settings.inference.think == "show"
        try:
            cloud = prompt.override.target is Target.CLOUD
            if why := self._session.gate.explain(turn.mark, cloud=cloud):
                sink.notice(why, urgent=False)
            self._history.begin(turn.turn(), talk)
            messages = talk.with_question(prompt.text, private=turn.override.private)
            for step in self._session.answer(turn, messages):
                match step:
                    case Notice(text, urgent):
                        sink.notice(text, urgent=urgent)
                    case Waiting(role, state):
                        sink.progress(f"{role}: {describe_state(state)}", step)
                    case RouteDecision():
                        if self._history.settle():
                            turn.kept_as = talk.turns[0].key if talk.turns else turn.key
                        sink.progress(f"asking {step.server or step.target} ...", step)
                    case PromptProgress():
                        sink.progress(describe_prompt(step), step)
                    case Retrying():
                        sink.progress(describe_retrying(step), step)
                    case Token(reasoning=True, text=piece) if shows:
                        sink.thought(piece)
                    case Token(reasoning=True, index=tokens):
                        sink.progress(describe_thinking(tokens), step)
                    case Token(text=piece):
                        sink.piece(piece, turn)
                        if turn.local and len(turn.pieces) == 1:  # while nobody waits for us
                            self._session.gate.rules.prepare()
        finally:
            kept = self.keep()
        assert kept is not None
        sink.ended(kept)

    def keep(self) -> Turn | None:
        """Store the turn in hand as it is."""
        turn, self.in_hand = self.in_hand, None
        if turn is None:
            return None
        private = self._session.answer_is_private(turn)
        kept = self._conversation.add(_tell_unseen(turn.turn(private=private), self._conversation))
        self._history.keep(kept, self._conversation)
        return kept


def _tell_unseen(turn: Turn, conversation: Conversation) -> Turn:
    """``turn`` with a notice of what its model has not seen, unless an earlier one said so."""
    told = max((earlier.usage.unseen for earlier in conversation.turns), default=0)
    if not isinstance(turn.end, Done) or turn.usage.unseen <= told:
        return turn
    notice = f"The conversation is longer than the model's context. {describe_unseen(turn.usage)}"
    return replace(turn, end=replace(turn.end, notices=(*turn.end.notices, notice)))
