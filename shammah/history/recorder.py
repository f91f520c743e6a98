"""Keeps one frontend's turns, as they finish.

The file is opened, at the first question, and written in the background, so that no prompt waits
for it. The question is written before it is asked, and its turn before it is shown as finished:
what was seen is there after a kill. When the file cannot be used the session goes on without it,
and says so, once until it can be used again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from shammah.chat.conversation import Conversation
from shammah.chat.turn import Turn
from shammah.errors import ShammahError
from shammah.history.record import BUSY_S, StoredConversation
from shammah.settings.model import Settings
from shammah.storage.writer import BackgroundWriter, Job

if TYPE_CHECKING:
    from shammah.history.store import Store

NAME = "history.db"

BEGIN_S = 0.5
"""What a question waits for its own record, in seconds."""
NOTICE_S = 0.5
"""After so many seconds of waiting for the file, the person is told."""
KEEP_S = 2 * BUSY_S + 1
"""What the end of an answer waits for the disk, in seconds: longer than its writer waits for
another one, with the question and with the whole turn."""
CLOSE_S = BUSY_S + 1
"""What leaving waits for the last turn, in seconds: longer than its writer waits."""

WAITING = "Saving this turn: waiting for the history file ..."
NOT_KEPT = "This turn was not stored in the history."

Result = TypeVar("Result")


@dataclass(slots=True)
class _Open:
    """The conversation that is being kept. The thread alone looks into it."""

    kept: StoredConversation
    unsaved: list[Turn] = field(default_factory=list)
    due: bool = False


class Recorder:
    """The history of one frontend.

    Args:
        path: of ``history.db``.
        enabled: false: what is said is not kept, and the file is not made.
        complain: told, from any thread, what people should know; each sentence once.

    Attributes:
        on_wait: called with a sentence for people when the file keeps them waiting.
    """

    def __init__(self, path: Path, *, enabled: bool, complain: Callable[[str], None]) -> None:
        self.path = path
        self.enabled = enabled
        self.on_wait: Callable[[str], None] = lambda sentence: None
        self._put = complain
        self._writer = BackgroundWriter("history", self._close_file)
        self._store: Store | None = None
        self._conversation = _Open(StoredConversation(0))
        self._begun: Job[object] | None = None
        self._complained: set[str] = set()

    def prepare(self) -> None:
        """Open the file in the background, if anything is going to be kept in it."""
        if self.enabled and not self._writer.begun:
            self._do(lambda store: store.open())

    def begin(self, turn: Turn, conversation: Conversation) -> None:
        """Keep the question of a turn, which is going to be asked in ``conversation``; `keep`
        puts the finished turn, of the same key, in its place. See `settle`."""
        if self.enabled:
            self._begun = self._write(turn, conversation)

    def settle(self) -> None:
        """Wait until what was begun is on the disk, for `BEGIN_S` at most."""
        if self._begun is not None:
            self._begun.wait(BEGIN_S)
            self._begun = None

    def keep(self, turn: Turn, conversation: Conversation) -> None:
        """Keep a finished turn of ``conversation``, which is the one in hand."""
        if self.enabled and not self._waited(self._write(turn, conversation).wait, KEEP_S):
            self._complain(NOT_KEPT, "slow")

    def _write(self, turn: Turn, talk: Conversation) -> Job[object]:
        conversation = self._conversation
        system, system_private = talk.system, talk.system_private

        def write(store: Store) -> None:
            if not conversation.kept.number:
                conversation.kept = replace(
                    conversation.kept, system=system, system_private=system_private
                )
            others = [one for one in conversation.unsaved if one.key != turn.key]
            conversation.unsaved = [*others, turn]
            conversation.due = True
            _save(conversation, store)
            self._complained.clear()

        return self._do(write)

    def _waited(self, wait: Callable[[float], bool], most_s: float) -> bool:
        """Whether ``wait`` ended in time; the person is told what for."""
        if wait(min(NOTICE_S, most_s)):
            return True
        self.on_wait(WAITING)
        return wait(most_s)

    def undo(self, turn: Turn) -> None:
        """A kept turn was taken out of the conversation."""
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
        """The conversation in hand has ended; the next turn begins another."""
        self._conversation = _Open(StoredConversation(0))

    def resume(self, kept: StoredConversation) -> None:
        """Go on with ``kept``, as it was read."""
        self._conversation = _Open(replace(kept, turns=()))

    def adopt(self, kept: StoredConversation) -> None:
        """Go on with a conversation from elsewhere. It is kept when it goes on; its turns must
        have keys of their own."""
        self._conversation = _Open(replace(kept, number=0, turns=()), list(kept.present))

    def read(self, work: Callable[[Store], Result]) -> Result:
        """What ``work`` returns; also when nothing is kept.

        Raises:
            ShammahError: ``history_empty``: there is no file. Otherwise as the store does.
        """
        if not self.path.exists():
            raise ShammahError("history_empty", NOTHING, HOW_IT_FILLS)

        def look() -> Result:
            try:
                return work(self._opened())
            except Exception as error:
                failure = _explained(error)
                self._complained.add(failure.code)
                raise failure from error

        return self._writer.put(look).result()

    def close(self) -> None:
        """Write what is left, for a short time at most."""
        if not self._writer.begun:
            return
        conversation = self._conversation
        self._do(lambda store: _save(conversation, store))  # what failed before
        if not self._waited(self._writer.close, CLOSE_S):
            self._complain(NOT_KEPT, "slow")

    # --- in the background ----------------------------------------------------------------

    def _do(self, work: Callable[[Store], object]) -> Job[object]:
        def run() -> None:
            try:
                work(self._opened())
            except Exception as error:
                failure = _explained(error)
                unusable = failure.code == "history_unusable"  # another hint is for commands
                said = failure if unusable else failure.message
                self._complain(f"{NOT_KEPT} {said}", failure.code)

        return self._writer.put(run)

    def _opened(self) -> Store:
        from shammah.history.store import Store

        if self._store is None:
            self._store = Store(self.path, self._complain)
        return self._store

    def _close_file(self) -> None:
        if self._store is not None:
            self._store.close()

    def _complain(self, sentence: str, kind: str = "") -> None:
        if kind and kind in self._complained:
            return
        self._complained.add(kind)
        self._put(sentence)


def _explained(error: Exception) -> ShammahError:
    if isinstance(error, ShammahError):
        return error
    what = f"The history cannot be used ({type(error).__name__}: {error})."
    return ShammahError("history_unusable", what)


def history_of(settings: Settings, *, enabled: bool, complain: Callable[[str], None]) -> Recorder:
    """The history that ``settings`` want; not ``enabled``: nothing is kept in any case."""
    enabled = enabled and settings.history == "on"
    return Recorder(settings.home / NAME, enabled=enabled, complain=complain)


NOTHING = "The history is empty."
HOW_IT_FILLS = "Questions at the prompt and with `shammah ask` are stored automatically."


def _save(conversation: _Open, store: Store) -> None:
    """Write what is not written yet; what fails is tried again with the next turn."""
    while conversation.due and conversation.unsaved:
        number = store.add(conversation.unsaved[0], conversation.kept)
        conversation.kept = replace(conversation.kept, number=number)
        del conversation.unsaved[0]
