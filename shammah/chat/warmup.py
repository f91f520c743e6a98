"""Warm-up: the local model reads what another model has answered before the next question."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

from shammah.bus.messages import Ready
from shammah.chat.conversation import Conversation, Turn
from shammah.chat.session import Session
from shammah.router.route import Target
from shammah.terminal.wording import short_name


class WarmUp:
    """Has the local model read the conversation when it becomes ready, and after each turn that it
    did not answer, or that leaves little room in its context. `look` may be called from any thread
    whenever anything changes."""

    def __init__(self, session: Session, conversation: Conversation) -> None:
        self._session = session
        self._conversation = conversation
        self._lock = threading.Lock()
        self._answering = False
        self._seen: tuple[str, str] = ("", "")
        self._read = 0

    def look(self) -> None:
        """Warm the model up if there is anything new."""
        with self._lock:
            peer = self._session.local.peer
            event = peer.latest if peer is not None and peer.welcome is not None else None
            if self._answering or event is None or not isinstance(event.status.state, Ready):
                return
            ready = event.status.state
            if ready.fallback and self._session.cloud is not None:
                return  # the cloud continues until the model itself is ready
            turns = [turn for turn in self._conversation.turns if turn.told]
            holder = event.run_id, ready.model
            new, self._seen = holder != self._seen, holder
            if new or len(turns) < self._read:
                self._read = 0
            others = answered_elsewhere(turns, ready)
            unread = others or (bool(turns) and (turns[-1].corrected or _fills(turns[-1], ready)))
            if turns and len(turns) != self._read and (new or unread):
                self._read = len(turns)
                talk = self._conversation
                self._session.read_ahead(talk.with_question("")[:-1], talk.adapter)
            if new and others:
                self._session.notices.put(describe_take_over(ready, len(turns)))

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Pause meanwhile; look afterwards."""
        self._answering = True
        try:
            yield
        finally:
            self._answering = False
            self.look()


def answered_elsewhere(turns: Sequence[Turn], ready: Ready) -> bool:
    """Whether another model than the ``ready`` one gave the last answer."""
    if not turns:
        return False
    by, decision = turns[-1].provenance, turns[-1].decision
    if by is None and decision is not None and decision.target is Target.LOCAL:
        return False  # cut short, and no other model has said a word
    return by is None or by.role != "inference" or by.model != ready.model


def _fills(turn: Turn, ready: Ready) -> bool:
    """Whether the next prompt may have to leave earlier messages out; then nearly all of it is to
    be computed anew."""
    tokens = turn.usage.input_tokens + turn.usage.output_tokens
    return tokens > ready.context_length * 2 // 3


def describe_take_over(ready: Ready, turns: int) -> str:
    """What the person reads when the local model becomes ready."""
    what = "the turn" if turns == 1 else f"the {turns} turns"
    name = short_name(ready.model)
    return f"The local model ({name}) is ready, and has {what} so far."
