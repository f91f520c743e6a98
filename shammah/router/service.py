"""The router of one frontend: it decides, and records the outcomes.

Decisions are made from a snapshot in memory. Its file is read and written in the background; if it
cannot be used, this frontend keeps its own record and says so once.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from shammah.bus.messages import ChatMessage, Done, Failed, Timings, Usage
from shammah.errors import ShammahError
from shammah.router.classic import ClassicState
from shammah.router.crisis import describe_help, find_country
from shammah.router.decision import Override, RouteDecision, Target, View, decide
from shammah.router.question import examine
from shammah.router.route import Arm, Question, Reason
from shammah.router.statistics import (
    Label,
    Outcome,
    Snapshot,
    judge,
    learn_classic,
    passes,
    summarize,
)
from shammah.settings.model import Settings
from shammah.storage.writer import BackgroundWriter

if TYPE_CHECKING:
    from shammah.router.store import Store

FIRST_READ_S = 0.005
"""How long the first decision waits for the statistics."""
CLOSE_S = 1.0
"""How long leaving waits for the last outcome to be written."""
FAILURE_S = 30.0
"""How long after a failure of the cloud, or of a server, others are preferred."""
NO_VERDICT = frozenset(
    {
        "adapter_damaged",
        "adapter_not_found",
        "adapter_unsupported",
        "adapter_wrong_base",
        "busy",
        "cloud_bad_request",
        "cloud_too_large",
        "context_too_long",
        "message_too_long",
        "messages_invalid",
        "private",
        "sampling_invalid",
        "schema_not_enforced",
    }
)
"""Failures of the question, not of the backend."""


class Routing:
    """Decides, and learns. `start` it when there is time, `close` it at the end.

    Args:
        complain: given sentences, from another thread: what was repaired, and once why nothing is
            recorded.

    Attributes:
        ready: the statistics have been read, or cannot be.
    """

    def __init__(
        self, settings: Settings, environ: Mapping[str, str], complain: Callable[[str], None]
    ) -> None:
        self.snapshot = Snapshot()
        self._rules = settings.router
        self.ready = threading.Event()
        self._path = settings.home / "router.db"
        self._environ = environ
        self._complain = complain
        self._failed = False
        self._writer = BackgroundWriter("routing", self._close_store)
        self._store: Store | None = None
        self._own: list[Outcome] = []
        self._failures: dict[tuple[Target, str], tuple[Failed, float]] = {}

    def start(self) -> None:
        """Start reading the statistics, in the background. Does nothing the second time."""
        if not self._writer.begun:
            self._writer.put(self._open_store)

    # --- one question ---------------------------------------------------------------------

    def examine(self, conversation: tuple[ChatMessage, ...]) -> Question:
        """Read a question; its help text is `help_text`."""
        self.start()
        return replace(examine(conversation), chance=random.random())

    def help_text(self, question: Question) -> str:
        """Whom to call; empty if nobody seems to be in danger."""
        danger = question.danger
        return describe_help(danger, find_country(self._environ)) if danger else ""

    def decide(
        self, question: Question, override: Override, view: View, *, wait: bool = True
    ) -> RouteDecision | Failed:
        """Return which backend answers, or why none can; ``wait`` a moment for the statistics."""
        if wait:
            self.ready.wait(FIRST_READ_S)  # meanwhile the workers are attached
        view = self.with_failures(view)
        return decide(question, override, view, self.snapshot, self._rules)

    def with_failures(self, view: View) -> View:
        """``view`` with who has failed a moment ago."""
        servers = tuple(
            replace(one, failed=self._recent_failure(Target.SERVER, one.name) is not None)
            for one in view.servers
        )
        return replace(view, cloud_failure=self._recent_failure(Target.CLOUD), servers=servers)

    def record(
        self, decision: RouteDecision, end: Done | Failed, *, question: str, answer: str
    ) -> str:
        """Record how an answer ended; its texts are judged, not stored. Return its name in the
        statistics; empty: nothing was recorded."""
        target = decision.target
        if isinstance(end, Failed) and end.code in NO_VERDICT:
            return ""
        if target is not Target.LOCAL:
            by = (target, decision.server)
            self._failures.pop(by, None)
            if isinstance(end, Failed) and end.code != "cancelled":
                self._failures[by] = (end, time.monotonic())
        expected = decision.chosen
        if decision.question.danger is not None or expected is None:
            return ""  # that someone was in danger is not recorded
        outcome = _outcome(expected.arm, decision.reason, end, question=question, answer=answer)
        self.start()
        self._writer.put(lambda: self._learn(outcome))
        return outcome.turn

    def label(self, label: Label, turn: str) -> bool:
        """Record what the person says of the answer named ``turn``; false if it has no name."""
        if turn:
            self.start()
            self._writer.put(lambda: self._relabel(turn, label))
        return bool(turn)

    def close(self) -> None:
        """Write what is left, for `CLOSE_S` at most."""
        self._writer.close(CLOSE_S)

    def _recent_failure(self, target: Target, server: str = "") -> Failed | None:
        failure, at = self._failures.get((target, server), (None, 0.0))
        return failure if time.monotonic() - at <= FAILURE_S else None

    # --- in the background ----------------------------------------------------------------

    def _open_store(self) -> None:
        from shammah.router.store import Store

        self._store = Store(self._path, self._complain)
        try:
            self.snapshot = self._store.read()
        except ShammahError as error:
            self._fail(error)
        self.ready.set()
        examine((ChatMessage("user", "hello"),))  # reads the lists before they matter

    def _close_store(self) -> None:
        if self._store is not None:
            self._store.close()

    def _learn(self, outcome: Outcome) -> None:
        self._own.append(outcome)
        classic = learn_classic(self.snapshot.classic, outcome)
        self._write(lambda store: store.add(outcome), classic)

    def _relabel(self, turn: str, label: Label) -> None:
        self._own = [replace(one, label=label) if one.turn == turn else one for one in self._own]
        self._write(lambda store: store.relabel(turn, label), self.snapshot.classic)

    def _write(self, write: Callable[[Store], None], classic: ClassicState) -> None:
        """Write to the file; if it cannot be used, this frontend's own outcomes must do."""
        try:
            assert self._store is not None
            write(self._store)
            self.snapshot = self._store.read()
        except ShammahError as error:
            self._fail(error)
            self.snapshot = summarize(self._own, classic)

    def _fail(self, error: ShammahError) -> None:
        if not self._failed:
            self._failed = True
            self._complain(str(error))


def _outcome(
    arm: Arm, reason: Reason, end: Done | Failed, *, question: str, answer: str
) -> Outcome:
    failed = isinstance(end, Failed)
    finish = end.code if isinstance(end, Failed) else end.finish_reason
    usage, timings = (Usage(), Timings()) if isinstance(end, Failed) else (end.usage, end.timings)
    label, passed = Label.CANCEL, None
    if finish != "cancelled":
        label = Label.BROKEN if failed else judge(answer, finish)
        passed = not failed and passes(question, answer)
        finish = "failed" if failed else finish
    return Outcome(
        turn=os.urandom(8).hex(),
        at=time.time(),
        arm=arm,
        reason=reason,
        finish=finish,
        label=label,
        passed=passed,
        ttft_s=timings.ttft_s,
        tokens_per_second=timings.decode_tokens_per_second,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cost=usage.cost or 0.0,
    )
