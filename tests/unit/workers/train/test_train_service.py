"""The train service with runs that only play a part: no torch, no model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shammah.bus.messages import Failed, State, WorkReply
from shammah.bus.training import (
    GateFigures,
    LossCurve,
    MergeAdapter,
    Train,
    Trained,
    Training,
    TrainingProgress,
    TrainProgress,
)
from shammah.errors import ShammahError
from shammah.settings.model import Settings
from tests.fakes.sandbox import Sandbox, until
from workers.service import Outlet
from workers.train import service as service_module
from workers.train.brake import Brake
from workers.train.service import BATTERY, TrainService, runs_on_battery

PATIENCE_S = 30.0
Message = WorkReply | State


class ScriptedRun:
    """Steps until it is told that this is enough, asking the brake before each."""

    def __init__(
        self, train: Train, brake: Brake, report: Callable[[TrainingProgress], None]
    ) -> None:
        self.train = train
        self.brake = brake
        self.report = report
        self.progress = TrainingProgress(train.model)
        self.enough = threading.Event()
        self.steps = 0
        brake.on_wait = self.on_wait

    def on_wait(self, why: str | None) -> None:
        if why is not None:
            phase = "paused" if why else "training"
            self.report(TrainingProgress(self.train.model, phase, why))

    def execute(self) -> Trained:
        if self.train.name == "wrong":
            raise ShammahError("example_invalid", "Line 3 is wrong.", "Mend it.")
        if self.train.name == "broken":
            raise RuntimeError("planted")
        while not self.enough.wait(0.01):
            self.brake.check()
            self.steps += 1
        figures = GateFigures(2.0, 1.0, 3, False, 300, 1.0, 0.9, 1.0, 0.5)
        curve = LossCurve((2.0,), (0,), (2.0,))
        return Trained(
            self.train.request_id, "a", "tiny", "accepted", "", figures, curve, 5, 1, 1.0, 100.0
        )


class Running:
    def __init__(self, sandbox: Sandbox, home: Path) -> None:
        self.runs: list[ScriptedRun] = []
        self.battery = False
        self.outlet = Outlet(lambda: None)
        self.said: list[Message] = []
        self.service = TrainService(
            Settings(home), {}, sandbox.endpoints, lambda: self.battery, self._make
        )
        self.thread = threading.Thread(target=self.service.run, args=(self.outlet,), daemon=True)
        self.thread.start()

    def _make(
        self,
        train: Train,
        brake: Brake,
        report: Callable[[TrainingProgress], None],
        outlet: Outlet,
    ) -> ScriptedRun:
        self.runs.append(ScriptedRun(train, brake, report))
        return self.runs[-1]

    def until(self, wanted: Callable[[Message], bool]) -> Message:
        while True:
            message = self.outlet.queue.get(timeout=PATIENCE_S)
            self.said.append(message)
            if wanted(message):
                return message

    def end(self, request_id: str) -> Message:
        return self.until(lambda m: isinstance(m, Trained | Failed) and m.request_id == request_id)

    def phase(self, phase: str) -> TrainingProgress:
        found = self.until(lambda m: isinstance(m, TrainProgress) and m.progress.phase == phase)
        assert isinstance(found, TrainProgress)
        return found.progress

    def run_of(self, place: int) -> ScriptedRun:
        return until(lambda: self.runs[place] if len(self.runs) > place else None, "a run begins")


@pytest.fixture
def running(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(service_module.os, "nice", lambda by: by)  # for the tests that follow
    made = Running(sandbox, tmp_path)
    yield made
    made.service.stop()
    for run in made.runs:
        run.enough.set()
    made.thread.join(PATIENCE_S)
    assert not made.thread.is_alive()


def test_a_training_is_told_of_and_ends(running: Running) -> None:
    assert running.until(lambda m: True) == Training()
    running.service.submit(Train("one", "tiny"))
    running.until(lambda m: m == Training(TrainingProgress("tiny")))
    running.run_of(0).enough.set()
    assert isinstance(running.end("one"), Trained)
    running.until(lambda m: m == Training())


def test_trainings_come_one_after_the_other(running: Running) -> None:
    running.service.submit(Train("one", "tiny"))
    running.service.submit(Train("two", "tiny"))
    running.run_of(0).enough.set()
    running.end("one")
    running.run_of(1).enough.set()
    running.end("two")


def test_a_running_training_is_cancelled(running: Running) -> None:
    running.service.submit(Train("one", "tiny"))
    until(lambda: running.run_of(0).steps, "it steps")
    running.service.cancel("one")
    ended = running.end("one")
    assert isinstance(ended, Failed)
    assert ended.code == "cancelled"
    assert "its progress is saved" in ended.message


def test_a_waiting_one_is_cancelled_without_beginning(running: Running) -> None:
    running.service.submit(Train("one", "tiny"))
    running.run_of(0)
    running.service.submit(Train("two", "tiny"))
    running.service.cancel("two")
    running.run_of(0).enough.set()
    running.end("one")
    ended = running.end("two")
    assert isinstance(ended, Failed)
    assert ended.code == "cancelled"
    assert running.runs[1].steps == 0


def test_a_stop_ends_what_runs(running: Running) -> None:
    running.service.submit(Train("one", "tiny"))
    until(lambda: running.run_of(0).steps, "it steps")
    running.service.stop()
    running.thread.join(PATIENCE_S)
    assert not running.thread.is_alive()


def test_an_expected_failure_is_told_as_it_is(running: Running) -> None:
    running.service.submit(Train("one", "tiny", name="wrong"))
    failed = Failed("example_invalid", "Line 3 is wrong.", "Mend it.", "one")
    assert running.end("one") == failed


def test_an_unexpected_failure_ends_its_training_alone(running: Running) -> None:
    running.service.submit(Train("one", "tiny", name="broken"))
    ended = running.end("one")
    assert isinstance(ended, Failed)
    assert ended.code == "internal"
    assert ended.message == "The training failed: RuntimeError"
    running.service.submit(Train("two", "tiny"))
    running.run_of(1).enough.set()
    assert isinstance(running.end("two"), Trained)


def test_on_battery_it_waits(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "POWER_S", 0.02)
    running.battery = True
    running.service.submit(Train("one", "tiny"))
    assert running.phase("paused").detail == BATTERY
    assert running.runs[0].steps == 0
    running.battery = False
    running.phase("training")
    until(lambda: running.runs[0].steps, "it steps")


def test_on_battery_it_goes_on_if_asked_to(running: Running) -> None:
    running.battery = True
    running.service.submit(Train("one", "tiny", on_battery=True))
    until(lambda: running.run_of(0).steps, "it steps")


@pytest.mark.parametrize(
    ("battery", "expected"),
    [
        (None, False),
        (SimpleNamespace(power_plugged=True), False),
        (SimpleNamespace(power_plugged=None), False),
        (SimpleNamespace(power_plugged=False), True),
    ],
)
def test_the_battery_is_read(monkeypatch: pytest.MonkeyPatch, battery: Any, expected: bool) -> None:
    monkeypatch.setattr(service_module.psutil, "sensors_battery", lambda: battery, raising=False)
    assert runs_on_battery() is expected


def test_a_merge_of_nothing_is_told(running: Running) -> None:
    running.service.submit(MergeAdapter("one", "absent", "/nowhere"))
    ended = running.end("one")
    assert isinstance(ended, Failed)
    assert ended.code == "adapter_not_found"
