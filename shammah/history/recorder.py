"""Stores one frontend's turns.

The file is opened and written in the background, so that no prompt waits for it. A question is
written before it is sent, and its turn before it is shown as finished: what was seen survives a
kill. If the file cannot be used, the session continues without it and reports that once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from shammah.chat.conversation import Conversation, Turn
from shammah.errors import ShammahError
from shammah.history.record import BUSY_S, StoredConversation
from shammah.settings.model import Settings
from shammah.storage.writer import BackgroundWriter, Job

if TYPE_CHECKING:
    from shammah.history.store import Store

NAME = "history.db"

BEGIN_S = 0.5
"""How long a question waits until it is stored, in seconds."""
NOTICE_S = 0.5
"""A longer wait for the file is reported."""
KEEP_S = 2 * BUSY_S + 1
"""How long the end of an answer waits for the disk, in seconds: longer than two writes, of the
question and of the turn, wait for another writer."""
CLOSE_S = BUSY_S + 1
"""How long the exit waits for the last turn, in seconds: longer than its writer."""

WAITING = "Saving this turn: waiting for the history file ..."
NOT_STORED = "This turn was not stored in the history."

Result = TypeVar("Result")


@dataclass(slots=True)
class _Open:
    """The conversation that is being stored. Only the writer's thread uses it."""

    stored: StoredConversation
    unsaved: list[Turn] = field(default_factory=list)
    due: bool = False


class Recorder:
    """The history of one frontend.

    Args:
        path: of ``history.db``.
        enabled: false: nothing is stored, and the file is not created.
        report: called from any thread with what the person should know, each sentence once.

    Attributes:
        on_wait: called with a sentence when the person waits for the file.
    """

    def __init__(self, path: Path, *, enabled: bool, report: Callable[[str], None]) -> None:
        self.path = path
        self.enabled = enabled
        self.on_wait: Callable[[str], None] = lambda sentence: None
        self._put = report
        self._writer = BackgroundWriter("history", self._close_file)
        self._store: Store | None = None
        self._conversation = _Open(StoredConversation(0))
        self._begun: Job[object] | None = None
        self._reported: set[str] = set()

    def prepare(self) -> None:
        """Open the file in the background, if anything will be stored."""
        if self.enabled and not self._writer.begun:
            self._do(lambda store: store.open())

    def begin(self, turn: Turn, conversation: Conversation) -> None:
        """Store the question of a turn of ``conversation``; `keep` replaces it with the finished
        turn, of the same key. See `settle`."""
        if self.enabled:
            self._begun = self._write(turn, conversation)

    def settle(self) -> bool:
        """Wait until the question is on the disk, for `BEGIN_S` at most; whether it is."""
        begun, self._begun = self._begun, None
        return begun is not None and begun.wait(BEGIN_S) and not self._conversation.unsaved

    def keep(self, turn: Turn, conversation: Conversation) -> None:
        """Store a finished turn of ``conversation``, the present one."""
        if self.enabled and not self._waited(self._write(turn, conversation).wait, KEEP_S):
            self._report(NOT_STORED, "slow")

    def _write(self, turn: Turn, talk: Conversation) -> Job[object]:
        conversation = self._conversation
        system, system_private = talk.system, talk.system_private

        def write(store: Store) -> None:
            if not conversation.stored.number:
                conversation.stored = replace(
                    conversation.stored, system=system, system_private=system_private
                )
            others = [one for one in conversation.unsaved if one.key != turn.key]
            conversation.unsaved = [*others, turn]
            conversation.due = True
            _save(conversation, store)
            self._reported.clear()

        return self._do(write)

    def _waited(self, wait: Callable[[float], bool], most_s: float) -> bool:
        """Return whether ``wait`` ended in time. A wait that the person notices is reported."""
        if wait(min(NOTICE_S, most_s)):
            return True
        self.on_wait(WAITING)
        return wait(most_s)

    def undo(self, turn: Turn) -> None:
        """Mark a stored turn as removed from its conversation."""
        if not self.enabled:
            return
        conversation, key = self._conversation, turn.key

        def mark(store: Store) -> None:
            known = [one.key for one in conversation.unsaved]
            if key in known:
                place = known.index(key)
                conversation.unsaved[place] = replace(conversation.unsaved[place], undone=True)
            else:
                store.undo(key)

        self._do(mark)

    def leave(self) -> None:
        """End the present conversation; the next turn begins another."""
        self._conversation = _Open(StoredConversation(0))

    @property
    def number(self) -> int:
        """Of the present conversation; 0 until one of its turns is stored."""
        return self._conversation.stored.number

    def resume(self, stored: StoredConversation) -> None:
        """Continue ``stored``. If it has no number, it is from elsewhere and is stored with its
        next turn; its turns must have keys of their own."""
        unsaved = [] if stored.number else list(stored.present)
        self._conversation = _Open(replace(stored, turns=()), unsaved)

    def read(self, work: Callable[[Store], Result]) -> Result:
        """Return what ``work`` returns, also if the history is off.

        Raises:
            ShammahError: ``history_empty``: there is no file; others as the store raises them.
        """
        if not self.path.exists():
            raise ShammahError("history_empty", NOTHING, HOW_IT_FILLS)

        def look() -> Result:
            try:
                return work(self._opened())
            except Exception as error:
                failure = _explained(error)
                self._reported.add(failure.code)
                raise failure from error

        return self._writer.put(look).result()

    def close(self) -> None:
        """Write what is left, within `CLOSE_S`."""
        if not self._writer.begun:
            return
        conversation = self._conversation
        self._do(lambda store: _save(conversation, store))  # what failed before
        if not self._waited(self._writer.close, CLOSE_S):
            self._report(NOT_STORED, "slow")

    # --- in the background ----------------------------------------------------------------

    def _do(self, work: Callable[[Store], object]) -> Job[object]:
        def run() -> None:
            try:
                work(self._opened())
            except Exception as error:
                failure = _explained(error)
                unusable = failure.code == "history_unusable"  # other hints are for commands
                said = failure if unusable else failure.message
                self._report(f"{NOT_STORED} {said}", failure.code)

        return self._writer.put(run)

    def _opened(self) -> Store:
        from shammah.history.store import Store

        if self._store is None:
            self._store = Store(self.path, self._report)
        return self._store

    def _close_file(self) -> None:
        if self._store is not None:
            self._store.close()

    def _report(self, sentence: str, kind: str = "") -> None:
        if kind and kind in self._reported:
            return
        self._reported.add(kind)
        self._put(sentence)


def _explained(error: Exception) -> ShammahError:
    if isinstance(error, ShammahError):
        return error
    what = f"The history cannot be used ({type(error).__name__}: {error})."
    return ShammahError("history_unusable", what)


def history_of(settings: Settings, *, enabled: bool, report: Callable[[str], None]) -> Recorder:
    """Open the history as ``settings`` say; unless ``enabled``, nothing is stored in any case."""
    enabled = enabled and settings.history == "on"
    return Recorder(settings.home / NAME, enabled=enabled, report=report)


NOTHING = "The history is empty."
HOW_IT_FILLS = "Questions at the prompt and with `shammah ask` are stored automatically."


def _save(conversation: _Open, store: Store) -> None:
    """Write what is not stored yet; what fails is tried again with the next turn."""
    while conversation.due and conversation.unsaved:
        number = store.add(conversation.unsaved[0], conversation.stored)
        conversation.stored = replace(conversation.stored, number=number)
        del conversation.unsaved[0]
