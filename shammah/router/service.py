"""The router of one frontend: the decisions, and what becomes of the answers.

Decisions are made from a snapshot in memory. The file behind it is opened, read and written by a
thread of its own, so that no question waits for a disk or for another frontend; when it cannot
be used, this frontend remembers for itself and says so once.
"""

from __future__ import annotations

import os
import queue
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from shammah.bus.messages import ChatMessage, Done, Failed
from shammah.bus.record import record
from shammah.errors import ShammahError
from shammah.router.contacts import describe_care, describe_help, find_country
from shammah.router.decision import RouteDecision, Target, View, Wish, decide
from shammah.router.quality import judge, passes
from shammah.router.question import examine
from shammah.router.route import Arm, Question, Rules
from shammah.router.statistics import Label, Outcome, Snapshot, learn_classic, summarize
from shammah.settings.model import Settings

if TYPE_CHECKING:
    from shammah.router.store import Store

FIRST_READ_S = 0.005
"""What a decision waits for the statistics, if they are not there yet."""
CLOSE_S = 1.0
"""What leaving waits for the last outcome to be written."""
FAILURE_S = 30.0
"""For so long after a failure of the cloud a local model that is ready is preferred."""
CERTAIN = 1.0
"""A number drawn that explores nothing."""
NO_VERDICT = frozenset(
    {
        *("busy", "cloud_bad_request", "cloud_too_large", "private"),
        *("context_too_long", "message_too_long", "messages_invalid", "sampling_invalid"),
        "schema_not_enforced",
        *("adapter_not_found", "adapter_damaged", "adapter_unsupported", "adapter_wrong_base"),
    }
)
"""Failures that say something about one question, and nothing about who was asked."""


@record
class Asked:
    """A question on its way: what the router read in it, and the number drawn for it."""

    question: Question
    text: str
    chance: float


_Note = Outcome | tuple[str, Label]


class Routing:
    """Decides, and learns. `start` it when there is time, `close` it at the end."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self.snapshot = Snapshot()
        self.rules = Rules(settings.router.policy, settings.router.exploration)
        self._path = settings.home / "router.db"
        self._environ = environ
        self._dice = random.Random()
        self._notes: queue.SimpleQueue[_Note | None] = queue.SimpleQueue()
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None
        self._own: list[Outcome] = []
        self._complaint = ""
        self._complained = False
        self._failure: tuple[Failed, float] | None = None
        self.last_turn = ""
        """The name of the last answer in the statistics; empty: nothing was written down."""

    def start(self) -> None:
        """Begin to read what is known, in the background. Does nothing the second time."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="routing", daemon=True)
            self._thread.start()

    # --- one question ---------------------------------------------------------------------

    def begin(self, conversation: tuple[ChatMessage, ...]) -> Asked:
        """Read a question; its help text is `help_text`."""
        self.start()
        self.last_turn = ""
        return Asked(examine(conversation), conversation[-1].content, self._dice.random())

    def help_text(self, asked: Asked) -> str:
        """Whom to call; empty when nobody seems to be in danger."""
        danger = asked.question.danger
        return describe_help(danger, find_country(self._environ)) if danger else ""

    def care_text(self, asked: Asked) -> str:
        """What to say to somebody in danger if nobody answers; empty when nobody seems to be."""
        danger = asked.question.danger
        return describe_care(danger) if danger else ""

    def decide(self, asked: Asked, wish: Wish, view: View) -> RouteDecision | Failed:
        """Who answers now, or why nobody can."""
        self._ready.wait(FIRST_READ_S)  # meanwhile the workers are attached
        view = replace(view, cloud_failure=self._recent_failure())
        return decide(asked.question, wish, view, self.snapshot, self.rules, asked.chance)

    def preview(self, wish: Wish, tokens: int, view: View) -> RouteDecision | Failed:
        """Who would answer a question of no special kind now, in a conversation of so many
        ``tokens``. Waits for nothing, and no dice are thrown."""
        view = replace(view, cloud_failure=self._recent_failure())
        return decide(Question(tokens=tokens), wish, view, self.snapshot, self.rules, CERTAIN)

    def record(self, asked: Asked, decision: RouteDecision, end: Done | Failed, text: str) -> None:
        """What became of an answer: how it ended, and its text (which is judged, not kept)."""
        target = decision.target
        self.last_turn = ""
        if isinstance(end, Failed) and end.code in NO_VERDICT:
            return
        if target is Target.CLOUD:
            self._failure = None
            if isinstance(end, Failed) and end.code != "cancelled":
                self._failure = (end, time.monotonic())
        expected = decision.alternative(target)
        if asked.question.danger is not None or expected is None:
            return  # that somebody was in danger is not written down
        outcome = _outcome(asked, expected.arm, decision, end, text)
        self.last_turn = outcome.turn
        self._learn(outcome)

    def label(self, label: Label, turn: str | None = None) -> bool:
        """What the person says of the answer that is named ``turn`` (``None``: of the last);
        false if there is none to speak of."""
        named = self.last_turn if turn is None else turn
        if named:
            self._notes.put((named, label))
        return bool(named)

    def take_complaint(self) -> str:
        """Why nothing can be remembered, the first time that it is asked for."""
        complaint, self._complaint = self._complaint, ""
        return complaint

    def close(self) -> None:
        """Write what is left, for a short time at most."""
        thread = self._thread
        if thread is not None:
            self._notes.put(None)
            thread.join(CLOSE_S)

    def _recent_failure(self) -> Failed | None:
        if self._failure is None or time.monotonic() - self._failure[1] > FAILURE_S:
            return None
        return self._failure[0]

    # --- the thread -----------------------------------------------------------------------

    def _learn(self, outcome: Outcome) -> None:
        self.start()
        self._notes.put(outcome)

    def _run(self) -> None:
        from shammah.router.store import Store

        store = Store(self._path, self._say)
        try:
            self.snapshot = store.read()
        except ShammahError as error:
            self._complain(error)
        self._ready.set()
        examine((ChatMessage("user", "hello"),))  # so that the lists are read before they matter
        while (note := self._notes.get()) is not None:
            self._keep(store, note)
        store.close()

    def _keep(self, store: Store, note: _Note) -> None:
        if isinstance(note, Outcome):
            self._own.append(note)
        else:
            self._own = [
                replace(one, label=note[1]) if one.turn == note[0] else one for one in self._own
            ]
        try:
            if isinstance(note, Outcome):
                store.add(note)
            else:
                store.relabel(*note)
            self.snapshot = store.read()
        except ShammahError as error:
            self._complain(error)
            self.snapshot = self._remember(note)

    def _remember(self, note: _Note) -> Snapshot:
        """Without a file: what this frontend has seen itself."""
        classic = self.snapshot.classic
        if isinstance(note, Outcome):
            classic = learn_classic(classic, note)
        return summarize(self._own, classic)

    def _complain(self, error: ShammahError) -> None:
        if not self._complained:
            self._complained = True
            self._say(str(error))

    def _say(self, sentence: str) -> None:
        self._complaint = sentence


def _outcome(
    asked: Asked, arm: Arm, decision: RouteDecision, end: Done | Failed, text: str
) -> Outcome:
    turn, now = os.urandom(8).hex(), time.time()
    if isinstance(end, Failed):
        cancelled = end.code == "cancelled"
        label = Label.CANCEL if cancelled else Label.BROKEN
        passed = None if cancelled else False
        finish = "cancelled" if cancelled else "failed"
        return Outcome(turn, now, arm, decision.reason, finish, label, passed)
    cancelled = end.finish_reason == "cancelled"
    return Outcome(
        turn,
        now,
        arm,
        decision.reason,
        end.finish_reason,
        Label.CANCEL if cancelled else judge(text, end.finish_reason),
        None if cancelled else passes(asked.text, text),
        end.timings.ttft_s,
        end.timings.decode_tokens_per_second,
        end.usage.input_tokens,
        end.usage.output_tokens,
        end.usage.cost or 0.0,
    )
