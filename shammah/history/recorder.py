"""Keeps one frontend's turns, as they finish.

A thread of its own opens the file, at the first question, and writes, so that no prompt waits
for it. The question is written before it is asked, and its turn before it is shown as finished:
what was seen is there after a kill. When the file cannot be used the session goes on without it,
and says so, once until it can be used again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from shammah.chat.record import BUSY_S, Kept, Record
from shammah.errors import ShammahError
from shammah.settings.model import Settings

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
NOT_KEPT = "This turn is not in the history."

Result = TypeVar("Result")


@dataclass(slots=True)
class _Open:
    """The conversation that is being kept. The thread alone looks into it."""

    kept: Kept
    unsaved: list[Record] = field(default_factory=list)
    due: bool = False


@dataclass(slots=True)
class _Job(Generic[Result]):
    work: Callable[[Store], Result]
    awaited: bool = False
    """Whoever has put it tells of its failure."""
    ended: threading.Event = field(default_factory=threading.Event)
    result: list[Result] = field(default_factory=list)
    error: ShammahError | None = None

    def run(self, store: Store) -> None:
        try:
            self.result.append(self.work(store))
        except ShammahError as error:
            self.error = error
        except Exception as error:  # the thread goes on for the next turn
            what = f"The history cannot be used ({type(error).__name__}: {error})."
            self.error = ShammahError("history_unusable", what)
        finally:
            self.ended.set()


class Recorder:
    """The history of one frontend.

    Args:
        path: of ``history.db``.
        enabled: false: what is said is not kept, and the file is not made.

    Attributes:
        on_wait: called with a sentence for people when the file keeps them waiting.
    """

    def __init__(self, path: Path, *, enabled: bool) -> None:
        self.path = path
        self.enabled = enabled
        self.on_wait: Callable[[str], None] = lambda sentence: None
        self._jobs: queue.SimpleQueue[_Job[None] | _Job[object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._conversation = _Open(Kept(0))
        self._begun: _Job[None] | None = None
        self._records: list[Record] = []
        self._complaints: list[str] = []
        self._complained: set[str] = set()

    def prepare(self) -> None:
        """Open the file in the background, if anything is going to be kept in it."""
        if self.enabled and self._thread is None:
            self._put(_Job(lambda store: store.open()))

    def begin(self, record: Record, system: str, *, system_private: bool) -> None:
        """Keep the question of a turn, which is going to be asked in the conversation in hand;
        `keep` puts the finished turn, of the same key, in its place. See `settle`."""
        if self.enabled:
            self._begun = self._write(record, system, system_private=system_private)

    def settle(self) -> None:
        """Wait until what was begun is on the disk, for `BEGIN_S` at most."""
        if self._begun is not None:
            self._begun.ended.wait(BEGIN_S)
            self._begun = None

    def keep(self, record: Record, system: str, *, system_private: bool) -> None:
        """Keep a finished turn of the conversation in hand, whose system prompt is ``system``."""
        self._records.append(record)
        if not self.enabled:
            return
        job = self._write(record, system, system_private=system_private)
        if not self._waited(job.ended.wait, KEEP_S):
            self._complain(NOT_KEPT, "slow")

    def _write(self, record: Record, system: str, *, system_private: bool) -> _Job[None]:
        conversation = self._conversation

        def write(store: Store) -> None:
            if not conversation.kept.number:
                conversation.kept = replace(
                    conversation.kept, system=system, system_private=system_private
                )
            others = [one for one in conversation.unsaved if one.key != record.key]
            conversation.unsaved = [*others, record]
            conversation.due = True
            _save(conversation, store)
            self._complained.clear()

        job: _Job[None] = _Job(write)
        self._put(job)
        return job

    def _waited(self, wait: Callable[[float], object], most_s: float) -> bool:
        """Whether ``wait`` ended in time; the person is told what for."""
        if wait(min(NOTICE_S, most_s)):
            return True
        self.on_wait(WAITING)
        return bool(wait(most_s))

    def undo(self, place: int = -1) -> None:
        """A kept turn was taken out of the conversation: the last, or that at ``place``."""
        if not self._records:
            return
        key = self._records.pop(place).key
        if not self.enabled:
            return
        conversation = self._conversation

        def mark(store: Store) -> None:
            known = [one.key for one in conversation.unsaved]
            if key in known:
                place = known.index(key)
                conversation.unsaved[place] = replace(conversation.unsaved[place], undone=True)
            else:
                store.undo(key)

        self._put(_Job(mark))

    def leave(self) -> None:
        """The conversation in hand has ended; the next turn begins another."""
        self._conversation = _Open(Kept(0))
        self._records = []

    def resume(self, kept: Kept) -> None:
        """Go on with ``kept``, as it was read."""
        self._conversation = _Open(replace(kept, records=()))
        self._records = list(kept.present)

    def adopt(self, kept: Kept) -> None:
        """Go on with a conversation from elsewhere. It is kept when it goes on; its turns must
        have keys of their own."""
        unsaved = list(kept.present)
        self._conversation = _Open(replace(kept, number=0, records=()), unsaved)
        self._records = list(unsaved)

    def read(self, work: Callable[[Store], Result]) -> Result:
        """What ``work`` returns; also when nothing is kept.

        Raises:
            ShammahError: ``history_empty``: there is no file. Otherwise as the store does.
        """
        if not self.path.exists():
            raise ShammahError("history_empty", NOTHING, HOW_IT_FILLS)
        job: _Job[Result] = _Job(work, awaited=True)
        self._put(job)
        job.ended.wait()
        if job.error is not None:
            raise job.error
        return job.result[0]

    @property
    def records(self) -> tuple[Record, ...]:
        """The turns of the conversation in hand, whether or not they are kept."""
        return tuple(self._records)

    def take_complaints(self) -> list[str]:
        """What people should know, each sentence once."""
        complaints, self._complaints = self._complaints, []
        return complaints

    def close(self) -> None:
        """Write what is left, for a short time at most."""
        thread = self._thread
        if thread is None:
            return
        conversation = self._conversation
        self._put(_Job(lambda store: _save(conversation, store)))  # what failed before
        self._jobs.put(None)

        def ended(seconds: float) -> bool:
            thread.join(seconds)
            return not thread.is_alive()

        if not self._waited(ended, CLOSE_S):
            self._complain(NOT_KEPT, "slow")

    # --- the thread -----------------------------------------------------------------------

    def _put(self, job: _Job[Result]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="history", daemon=True)
            self._thread.start()
        self._jobs.put(job)  # type: ignore[arg-type]

    def _run(self) -> None:
        from shammah.history.store import Store

        store = Store(self.path, self._complain)
        while (job := self._jobs.get()) is not None:
            job.run(store)
            if job.error is not None and job.awaited:
                self._complained.add(job.error.code)
            elif job.error is not None:
                unusable = job.error.code == "history_unusable"  # another hint is for commands
                said = job.error if unusable else job.error.message
                self._complain(f"{NOT_KEPT} {said}", job.error.code)
        store.close()

    def _complain(self, sentence: str, kind: str = "") -> None:
        if kind and kind in self._complained:
            return
        self._complained.add(kind)
        self._complaints.append(sentence)


def history_of(settings: Settings, *, enabled: bool) -> Recorder:
    """The history that ``settings`` want; not ``enabled``: nothing is kept in any case."""
    return Recorder(settings.home / NAME, enabled=enabled and settings.history == "on")


NOTHING = "There is no history yet."
HOW_IT_FILLS = "It fills by itself: what you ask at the prompt and with `ask` is kept."


def _save(conversation: _Open, store: Store) -> None:
    """Write what is not written yet; what fails is tried again with the next turn."""
    while conversation.due and conversation.unsaved:
        record, kept = conversation.unsaved[0], conversation.kept
        number = store.add(record, kept)
        conversation.kept = replace(kept, number=number)
        del conversation.unsaved[0]
