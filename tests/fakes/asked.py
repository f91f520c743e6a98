"""A question to a session, on its way."""

from __future__ import annotations

import queue
import threading

from shammah.bus.messages import ChatMessage, Done, Failed
from shammah.chat.conversation import Step
from shammah.chat.session import Session
from shammah.router.decision import Override
from tests.fakes.sandbox import LIMIT_S
from tests.fakes.turns import way_of


class Asked:
    """A question in a thread of its own, step by step."""

    def __init__(self, session: Session, text: str, override: Override) -> None:
        self.steps: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self._session = session
        self._text = text
        self._wish = override
        threading.Thread(target=self._run, name="asked", daemon=True).start()

    def _run(self) -> None:
        for step in way_of(self._session, (ChatMessage("user", self._text),), self._wish):
            self.steps.put(step)
        self.steps.put(None)

    def wait_for(self, kind: type) -> Step:
        while not isinstance(step := self.steps.get(timeout=LIMIT_S), kind):
            assert step is not None, f"it ended without a {kind.__name__}"
        return step

    def end(self) -> Done | Failed:
        """How it ends: by exactly one Done or Failed, the last of all."""
        steps = list(iter(lambda: self.steps.get(timeout=LIMIT_S), None))
        ends = [step for step in steps if isinstance(step, Done | Failed)]
        assert ends == steps[-1:]
        return ends[0]
