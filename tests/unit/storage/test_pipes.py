"""A pipe in the place of a file of the home or the runtime directory keeps nobody waiting."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shammah.errors import ShammahError
from shammah.learning.feedback import Feedback
from shammah.privacy.ledger import Reader
from shammah.repl.input.line_history import LineHistory
from shammah.storage.disk import open_log
from shammah.supervision.oom_record import read_attempt

pytestmark = pytest.mark.timeout(10)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def test_a_log_that_is_one_is_done_without(pipe: Path) -> None:
    descriptor = open_log(pipe)
    assert os.write(descriptor, b"lost") == 4
    os.close(descriptor)


def test_no_attempt_is_read_from_one(pipe: Path) -> None:
    assert read_attempt(pipe) is None


def test_feedback_says_so(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "feedback.jsonl")
    with pytest.raises(ShammahError, match="it is a pipe, not a file"):
        Feedback(tmp_path).verdicts()


def test_the_ledger_says_so(pipe: Path) -> None:
    with pytest.raises(ShammahError, match="it is a pipe, not a file"):
        list(Reader(pipe).read())


def test_the_lines_of_the_prompt_are_none(pipe: Path) -> None:
    lines = LineHistory(pipe, lambda line: True)
    assert list(lines.load_history_strings()) == []
    lines.store_string("typed")
    assert list(lines.load_history_strings()) == ["typed"]
