"""Eight requests at once in the service, with the native engine: what a cancel still costs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shammah.bus.messages import ChatMessage, Done, Failed, Generate, Ready, Sampling
from shammah.settings.model import Settings
from tests.fakes.engines import only
from tests.real.models import KEPT_KERNELS, starter
from workers.inference.engine import StepResult
from workers.inference.engines.native.runner import NativeRunner
from workers.inference.scheduling.batched_engine import BatchedEngine
from workers.inference.service import InferenceService
from workers.service import Outlet

pytestmark = pytest.mark.timeout(120)

PATIENCE_S = 100.0
OTHERS = 7


class Watched(BatchedEngine):
    """Remembers what each step did, and does something in the middle of one."""

    def __init__(self, runner: NativeRunner) -> None:
        super().__init__(runner)
        self.steps: list[list[StepResult]] = []
        self.during: Callable[[int], None] = lambda step: None

    def step(self) -> list[StepResult]:
        self.during(len(self.steps))
        self.steps.append(super().step())
        return self.steps[-1]

    def of(self, request_id: str) -> list[tuple[int, StepResult]]:
        """What the steps did for one request, with their numbers."""
        return [
            (number, result)
            for number, results in enumerate(self.steps)
            for result in results
            if result.request_id == request_id
        ]


class Running:
    """A service whose model is loaded."""

    def __init__(self, directory: Path) -> None:
        self.engine = Watched(NativeRunner(directory / "quantized", KEPT_KERNELS))
        self.service = InferenceService(
            Settings(directory, str(starter())),
            engines=only(lambda: self.engine),
        )
        self.outlet = Outlet(lambda: None)
        self.ends: dict[str, Done] = {}
        self._thread = threading.Thread(target=self.service.run, args=(self.outlet,), daemon=True)
        self._thread.start()
        while not isinstance(self.outlet.queue.get(timeout=PATIENCE_S), Ready):
            pass

    def ask(self, name: str, text: str, tokens: int) -> None:
        messages = (ChatMessage("user", text),)
        self.service.submit(Generate(name, messages, Sampling(0.0), tokens), name)

    def drain(self, count: int) -> None:
        """Until so many have ended."""
        while len(self.ends) < count:
            message = self.outlet.queue.get(timeout=PATIENCE_S)
            assert not isinstance(message, Failed), message
            if isinstance(message, Done):
                self.ends[message.request_id] = message

    def close(self) -> None:
        self.service.stop()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        with pytest.raises(queue.Empty):
            self.outlet.queue.get_nowait()


def is_in_prompt(did: list[tuple[int, StepResult]]) -> bool:
    return any(result.prefilled for _, result in did)


def is_in_answer(did: list[tuple[int, StepResult]]) -> bool:
    return sum(result.generated for _, result in did) > 3


@pytest.mark.parametrize(
    ("text", "when"),
    [("The sea is wide. " * 600, is_in_prompt), ("Tell me a long story.", is_in_answer)],
    ids=["prompt", "answer"],
)
def test_a_cancel_among_eight_costs_no_more_than_the_step_it_came_in(
    tmp_path: Path, text: str, when: Callable[[list[tuple[int, StepResult]]], bool]
) -> None:
    running = Running(tmp_path)
    engine = running.engine
    cancelled_in: list[int] = []

    def cancel(step: int) -> None:
        if not cancelled_in and when(engine.of("x")):
            cancelled_in.append(step)
            running.service.cancel("x")

    engine.during = cancel
    for number in range(OTHERS):
        running.ask(str(number), f"Name {number + 2} colours.", 40)
    running.ask("x", text, 400)
    running.drain(OTHERS + 1)
    running.close()
    did = engine.of("x")
    assert running.ends["x"].finish_reason == "cancelled"
    assert did[-1][0] == cancelled_in[0]  # the step in hand was the last
    last = did[-1][1]
    assert (last.prefilled > 0) == (when is is_in_prompt)
    assert last.prefilled <= NativeRunner.limits.chunk
    assert sum(result.prefilled for _, result in did) < 6000
    assert engine.active == 0
