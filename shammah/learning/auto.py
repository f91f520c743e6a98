"""Learning by itself: begins a training in the background when there is something to learn."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from shammah.bus.client import new_request_id
from shammah.bus.endpoints import lock_holder, open_endpoints
from shammah.bus.training import Train
from shammah.learning.adapters import AdapterStore
from shammah.learning.examples import LEAST_EXAMPLES
from shammah.learning.feedback import Feedback
from shammah.settings.model import Settings, TrainSettings
from shammah.supervision.lifecycle import connect

log = logging.getLogger(__name__)

LOOK_S = 30.0
"""How often it is looked whether there is something to learn."""

CLOSE_S = 0.5


def is_due(asked: TrainSettings, examples: int, learnt: int, idle_s: float) -> bool:
    """Whether a training should begin.

    Args:
        asked: the settings.
        examples: how many there are.
        learnt: from how many of them a training has been made already.
        idle_s: seconds since the last question.
    """
    new = examples - learnt
    if new <= 0 or examples < LEAST_EXAMPLES:
        return False
    return new >= asked.after_examples or idle_s >= 60 * asked.idle_minutes


ROLE = "train"


class AutoTraining:
    """Looks now and then, on a thread of its own.

    Args:
        settings: whose.
        model: which model is to learn, as in the settings.
        clock: seconds, for how long nothing was asked.
    """

    def __init__(
        self,
        settings: Settings,
        model: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._model = model
        self._clock = clock
        self._asked_s = clock()
        self._asked = 0
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="auto-training", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def note_question(self) -> None:
        """One was asked just now."""
        self._asked_s = self._clock()

    def close(self) -> None:
        """Begin nothing more; a training that has begun goes on."""
        self._left.set()
        self._thread.join(CLOSE_S)

    def look(self) -> bool:
        """Begin a training if one is due; whether one was begun.

        Raises:
            ShammahError: it is due and cannot be begun.
        """
        feedback = Feedback(self._settings.home)
        if not feedback.path.exists() or self._is_training():
            return False
        count = len(feedback.examples(from_cloud=self._settings.train.from_cloud))
        learnt = max(self._asked, learnt_examples(AdapterStore(self._settings.home)))
        if not is_due(self._settings.train, count, learnt, self._clock() - self._asked_s):
            return False
        self._asked = count  # whatever becomes of it, not again for the same
        self._begin()
        return True

    def _run(self) -> None:
        while not self._left.wait(LOOK_S):
            try:
                self.look()
            except Exception as error:  # it is looked again, when there is room on the disk perhaps
                log.warning("no training was begun: %s", error)

    def _is_training(self) -> bool:
        return lock_holder(open_endpoints(os.environ).lock(ROLE)) is not None

    def _begin(self) -> None:
        own = self._settings.train
        wanted = Train(
            new_request_id(),
            self._model(),
            on_battery=own.on_battery,
            from_cloud=own.from_cloud,
        )
        peer = connect(self._settings, ROLE, "repl", os.environ)
        try:
            task = peer.begin(wanted)
            next(iter(task))  # it was taken, or refused; the worker goes on without us
        finally:
            peer.close()


def learnt_examples(store: AdapterStore) -> int:
    """From how many examples of the feedback the newest adapters were made."""
    counts = [
        entry.training.get("examples", 0) + entry.training.get("held_out", 0)
        for entry in store.entries()
        if entry.training.get("source") == "feedback"
    ]
    return max(counts, default=0)
