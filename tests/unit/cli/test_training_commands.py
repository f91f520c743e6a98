"""``shammah train`` while the worker does something else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shammah.bus.messages import Failed, State
from shammah.bus.training import Train, Training, TrainingProgress
from shammah.cli import training_commands
from shammah.errors import ShammahError
from shammah.settings.model import Settings

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
    monkeypatch.setattr(training_commands, "connect", lambda *asked: Worker(state))
    asked = Train("1", "starter", examples=str(examples))
    with pytest.raises(ShammahError, match="as planned"):
        training_commands.train(Settings(tmp_path), asked, None, as_json=False)
    said = capsys.readouterr().err
    assert ("Another training is under way (training 3B" in said) is told
    assert ("`shammah stop train` ends both" in said) is told


def test_one_of_the_same_name_is_not_begun_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = tmp_path / "examples.jsonl"
    lines = [json.dumps({"prompt": f"what is {one}?", "response": "x"}) for one in range(8)]
    examples.write_text("\n".join(lines))
    state = Training(TrainingProgress("3B", "training", step=3, steps=9, adapter="tidy"))
    monkeypatch.setattr(training_commands, "connect", lambda *asked: Worker(state))
    asked = Train("1", "starter", examples=str(examples), name="tidy")
    with pytest.raises(ShammahError, match=r"tidy is being trained already \(training 3B") as told:
        training_commands.train(Settings(tmp_path), asked, None, as_json=False)
    assert "`shammah status` shows how far it is" in told.value.hint


def test_feedback_that_cannot_be_read_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "feedback.jsonl").write_text("x\ny\n")
    with pytest.raises(ShammahError, match="0 questions"):
        training_commands.train(Settings(tmp_path), Train("1", "starter"), None, as_json=False)
    assert f"2 lines of {tmp_path}/feedback.jsonl cannot be read" in capsys.readouterr().err
