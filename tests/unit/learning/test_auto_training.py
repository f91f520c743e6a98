"""When a training begins by itself."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest

from shammah.bus.messages import Accepted, ChatMessage
from shammah.bus.training import Train
from shammah.learning import auto
from shammah.learning.adapters import CONFIG, WEIGHTS, AdapterEntry, AdapterStore
from shammah.learning.auto import AutoTraining, is_due, learnt_examples
from shammah.learning.feedback import Feedback, JudgedTurn
from shammah.settings.model import Settings, TrainSettings

ASKED = TrainSettings(auto=True, after_examples=10, idle_minutes=5)


@pytest.mark.parametrize(
    ("examples", "learnt", "idle_s", "due"),
    [
        (0, 0, 1e9, False),
        (3, 0, 1e9, False),  # too few to hold any back
        (4, 0, 299, False),
        (4, 0, 300, True),
        (9, 0, 0, False),
        (10, 0, 0, True),
        (10, 10, 1e9, False),
        (19, 10, 0, False),
        (20, 10, 0, True),
        (11, 10, 300, True),
        (5, 10, 300, False),  # the file was begun anew
    ],
)
def test_a_training_is_due(examples: int, learnt: int, idle_s: float, due: bool) -> None:
    assert is_due(ASKED, examples, learnt, idle_s) is due


def test_it_is_off_unless_asked_for() -> None:
    assert not TrainSettings().auto


def test_what_was_learnt_is_what_the_adapters_say(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    assert learnt_examples(store) == 0

    def fill(directory: Path) -> None:
        (directory / CONFIG).write_text("{}")
        (directory / WEIGHTS).write_text("w")

    for name, source, count in (("a", "feedback", 8), ("b", "file", 100), ("c", "feedback", 20)):
        training = {"source": source, "examples": count, "held_out": 2}
        store.add(AdapterEntry(name, Path(), "starter", training=training), fill)
    assert learnt_examples(store) == 22


def test_one_training_is_begun_for_the_same_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Train] = []
    worker = SimpleNamespace(
        begin=lambda train: begun.append(train) or iter([Accepted(train.request_id)]),
        close=lambda: None,
    )
    monkeypatch.setattr(auto, "connect", lambda *_: worker)
    times = itertools.chain([0.0], itertools.repeat(1e6))
    learning = AutoTraining(Settings(tmp_path, train=ASKED), lambda: "starter", lambda: next(times))
    assert not learning.look()
    feedback = Feedback(tmp_path)
    for number in range(5):
        turn = JudgedTurn((ChatMessage("user", f"question {number}"),), "answer", "inference")
        feedback.note(turn, "good")
    assert learning.look()
    assert not learning.look()
    feedback.note(JudgedTurn((ChatMessage("user", "Claude?"),), "answer", "cloud"), "good")
    assert not learning.look()
    feedback.note(JudgedTurn((ChatMessage("user", "more"),), "answer", "inference"), "good")
    assert learning.look()
    assert len(begun) == 2
