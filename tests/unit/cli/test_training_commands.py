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
