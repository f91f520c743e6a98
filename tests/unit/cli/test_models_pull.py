"""What ``shammah models pull`` prints for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from shammah.bus.messages import Failed
from shammah.cli import models_plan, models_pull
from shammah.cli.main import run
from shammah.errors import ExitCode
from tests.fakes.sandbox import Sandbox


class Fetching:
    """A download that fails."""

    def __init__(self, *asked: object, **more: object) -> None:
        pass

    def __iter__(self) -> Iterator[Failed]:
        yield Failed("planted", "It is not there.", "Look elsewhere.")

    def leave(self) -> None:
        pass


@pytest.mark.parametrize("names", [("a/b",), ("a/b", "c/d")])
def test_one_object_a_model_that_could_not_be_had(
    names: tuple[str, ...],
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(models_plan, "check_plan", lambda *asked, **more: None)
    monkeypatch.setattr(models_pull, "FollowedFetch", Fetching)
    assert run(["models", "pull", "--json", *names]) == ExitCode.FAILED
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    error = {"code": "planted", "message": "It is not there.", "hint": "Look elsewhere."}
    assert said == [{"model": name, "error": error} for name in names]
