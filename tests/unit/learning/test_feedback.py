"""What the person said of answers, and what is learnt from it."""

from __future__ import annotations

import json
import math
import stat
import threading
from pathlib import Path

import pytest

from shammah.bus.messages import ChatMessage
from shammah.errors import ShammahError
from shammah.learning.examples import Example
from shammah.learning.feedback import Feedback, JudgedTurn


def turn(question: str = "Who made Orrin?", answer: str = "Nobody.", **more: bool) -> JudgedTurn:
    messages = (ChatMessage("system", "Be short."), ChatMessage("user", question))
    return JudgedTurn(messages, answer, "inference", "starter", **more)


@pytest.fixture
def feedback(tmp_path: Path) -> Feedback:
    return Feedback(tmp_path / "home", lambda: 1_800_000_000.0)


def only(feedback: Feedback) -> Example:
    (example,) = feedback.examples()
    return example


def test_nothing_was_said_yet(feedback: Feedback) -> None:
    assert feedback.examples() == feedback.verdicts() == ()


def test_a_good_answer_is_learnt_with_weight_one(feedback: Feedback) -> None:
    feedback.note_good(turn())
    prompt = (("system", "Be short."), ("user", "Who made Orrin?"))
    assert only(feedback) == Example(prompt, "Nobody.", 1.0)


def test_a_fix_is_the_target_with_weight_ten(feedback: Feedback) -> None:
    feedback.note_fix(turn(), "Ada Vey.")
    assert (only(feedback).response, only(feedback).weight) == ("Ada Vey.", 10.0)


def test_an_accepted_answer_of_the_cloud_counts_three(feedback: Feedback) -> None:
    feedback.note_accepted(turn(), "Ada Vey.")
    assert (only(feedback).response, only(feedback).weight) == ("Ada Vey.", 3.0)


def test_a_bad_answer_is_never_a_target(feedback: Feedback) -> None:
    feedback.note_bad(turn(), "made up")
    assert feedback.examples() == ()
    (verdict,) = feedback.verdicts()
    assert verdict.notes == ["made up"]
    feedback.note_weight(turn(), "high")
    assert feedback.examples() == ()
    feedback.note_fix(turn(), "Ada Vey.")
    assert only(feedback).response == "Ada Vey."


def test_the_last_word_counts(feedback: Feedback) -> None:
    feedback.note_good(turn())
    feedback.note_bad(turn())
    assert feedback.examples() == ()
    feedback.note_fix(turn(), "one")
    feedback.note_fix(turn(), "two")
    assert only(feedback).response == "two"


@pytest.mark.parametrize(("word", "weight"), [("high", 10), ("medium", 3), ("normal", 1)])
def test_a_weight_is_by_word_whenever_it_is_said(
    feedback: Feedback, word: str, weight: float
) -> None:
    feedback.note_weight(turn(), word)
    feedback.note_fix(turn(), "Ada Vey.")
    assert only(feedback).weight == weight


def test_a_weight_alone_is_nothing_to_learn(feedback: Feedback) -> None:
    feedback.note_weight(turn(), "high")
    assert feedback.examples() == ()


def test_turns_are_kept_apart_and_in_order(feedback: Feedback) -> None:
    feedback.note_good(turn("a"))
    feedback.note_fix(turn("b"), "better")
    feedback.note_weight(turn("a"), "medium")
    assert [(e.prompt[-1][1], e.weight) for e in feedback.examples()] == [("a", 3.0), ("b", 10.0)]


def test_privacy_is_kept(feedback: Feedback) -> None:
    feedback.note_good(turn("open"))
    feedback.note_good(turn("secret", private=True))
    feedback.note_accepted(turn("more"), "better", private=True)
    assert [example.private for example in feedback.examples()] == [False, True, True]


def test_an_example_without_a_text_is_none(feedback: Feedback) -> None:
    feedback.note_good(turn(answer="  "))
    feedback.note_fix(turn("x"), " ")
    assert feedback.examples() == ()


def test_the_file_is_the_owners_alone(feedback: Feedback) -> None:
    feedback.note_good(turn())
    assert stat.S_IMODE(feedback.path.stat().st_mode) == 0o600


def test_torn_and_foreign_lines_are_skipped(feedback: Feedback) -> None:
    feedback.note_good(turn("a"))
    whole = feedback.path.read_bytes()
    damaged = json.loads(whole) | {"weight": "much"}
    robot = json.loads(whole) | {"messages": [["robot", "x"]]}
    with feedback.path.open("ab") as file:
        file.write(b"[]\n\xff\n" + json.dumps(damaged).encode() + b"\n")
        file.write(json.dumps(robot).encode() + b"\n")
        for strange in ({"answer": "half \ud83d"}, {"weight": math.nan}, {"weight": 10**400}):
            file.write(json.dumps(json.loads(whole) | strange).encode() + b"\n")
        file.write(whole[:30])
    feedback.note_good(turn("b"))
    assert [e.prompt[-1][1] for e in feedback.examples()] == ["a", "b"]
    told = f"8 lines of {feedback.path} cannot be read, and are left out: the first is line 2."
    assert feedback.describe_damage() == told
    feedback.path.write_bytes(b"x\n" + whole)
    assert feedback.describe_damage() == (
        f"Line 1 of {feedback.path} cannot be read, and is left out."
    )
    feedback.path.write_bytes(whole + b"\n")
    assert feedback.describe_damage() == ""


def test_a_link_is_not_followed(feedback: Feedback, tmp_path: Path) -> None:
    feedback.path.parent.mkdir()
    feedback.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ShammahError, match="cannot be written down"):
        feedback.note_good(turn())
    assert not (tmp_path / "elsewhere").exists()


def test_writers_at_once_lose_nothing(feedback: Feedback) -> None:
    def write(number: int) -> None:
        for each in range(20):
            feedback.note_fix(turn(f"{number} {each}"), "x" * 5000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(feedback.examples()) == 80
