"""``shammah train`` while the worker does something else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shammah.bus.messages import ChatMessage, Failed, State
from shammah.bus.training import Train, Training, TrainingProgress
from shammah.cli import training
from shammah.cli.main import run
from shammah.errors import ExitCode
from shammah.learning.feedback import Feedback, JudgedTurn

OTHER = Training(TrainingProgress("3B", "training", step=3, steps=9))


class Worker:
    """What `connect` returns: a worker in ``state`` that refuses what it is asked."""

    stopped = False

    def __init__(self, state: State) -> None:
        self.welcome = SimpleNamespace(event=SimpleNamespace(status=SimpleNamespace(state=state)))

    def begin(self, asked: Train) -> Iterator[Any]:
        yield Failed("planted", "as planned")

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAMMAH_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(("state", "told"), [(OTHER, True), (Training(), False)])
def test_one_that_waits_for_another_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    state: State,
    told: bool,
) -> None:
    examples = tmp_path / "examples.jsonl"
    lines = [json.dumps({"prompt": f"what is {one}?", "response": "x"}) for one in range(8)]
    examples.write_text("\n".join(lines))
    monkeypatch.setattr(training, "connect", lambda *asked: Worker(state))
    assert run(["train", "--model", "starter", "--examples", str(examples)]) == ExitCode.FAILED
    said = capsys.readouterr().err
    assert "as planned" in said
    assert ("Another training is running (training 3B" in said) is told
    assert ("`shammah stop train` stops both" in said) is told


def test_one_of_the_same_name_is_not_begun_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = tmp_path / "examples.jsonl"
    lines = [json.dumps({"prompt": f"what is {one}?", "response": "x"}) for one in range(8)]
    examples.write_text("\n".join(lines))
    state = Training(TrainingProgress("3B", "training", step=3, steps=9, adapter="tidy"))
    monkeypatch.setattr(training, "connect", lambda *asked: Worker(state))
    line = ["train", "--model", "starter", "--examples", str(examples), "--name", "tidy", "--json"]
    assert run(line) == ExitCode.FAILED
    said = capsys.readouterr()
    assert "tidy is already being trained (training 3B" in said.err
    assert "`shammah status` shows its progress" in json.loads(said.out)["error"]["hint"]


def test_what_is_not_learnt_of_the_feedback_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Train] = []
    worker = Worker(Training())
    worker.begin = lambda train: asked.append(train) or Worker.begin(worker, train)  # type: ignore
    monkeypatch.setattr(training, "connect", lambda *_: worker)
    feedback = Feedback(tmp_path / "home")
    for number in range(4):
        turn = JudgedTurn((ChatMessage("user", f"question {number}"),), "x", "cloud", "claude")
        feedback.note(turn, "good")
    assert run(["train", "--model", "starter"]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "Leaving out 4 answers that are Claude's" in said
    assert "0 questions" in said
    (tmp_path / "home" / "config.toml").write_text("[train]\nfrom_cloud = true\n")
    assert run(["train", "--model", "starter"]) == ExitCode.FAILED
    assert "Leaving out" not in capsys.readouterr().err
    assert [train.from_cloud for train in asked] == [True]


def test_feedback_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHAMMAH_HOME", str(tmp_path))
    (tmp_path / "feedback.jsonl").write_text("x\ny\n")
    assert run(["train", "--model", "starter"]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "0 questions" in said
    assert f"2 lines of {tmp_path}/feedback.jsonl cannot be read" in said
