"""What the person said of answers, and what is learnt from it."""

from __future__ import annotations

import json
import math
import stat
import threading
from dataclasses import replace
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
    (example,) = feedback.examples(from_cloud=True)
    return example


def test_nothing_was_said_yet(feedback: Feedback) -> None:
    assert feedback.examples(from_cloud=True) == feedback.verdicts() == ()


def test_a_good_answer_is_learnt_with_weight_one(feedback: Feedback) -> None:
    feedback.note(turn(), "good")
    prompt = (("system", "Be short."), ("user", "Who made Orrin?"))
    assert only(feedback) == Example(prompt, "Nobody.", 1.0, source="local")


CLAUDES = JudgedTurn((ChatMessage("user", "Who?"),), "Claude's.", "cloud", "claude")
MIXED = replace(CLAUDES, role="inference", foreign=True)
UNKNOWN = replace(CLAUDES, role="")
BESIDE = replace(CLAUDES, role="servers")


@pytest.mark.parametrize("of", [CLAUDES, MIXED, UNKNOWN, BESIDE])
def test_what_another_model_wrote_is_learnt_only_if_that_is_allowed(
    feedback: Feedback, of: JudgedTurn
) -> None:
    feedback.note(of, "good")
    assert feedback.examples(from_cloud=False) == ()
    assert only(feedback).source == "cloud"
    feedback.note(of, "fix", better="What I say.")
    assert [one.source for one in feedback.examples(from_cloud=False)] == ["person"]
    feedback.note(turn(), "accepted", better="Claude's.")
    assert [one.response for one in feedback.examples(from_cloud=False)] == ["What I say."]


@pytest.mark.parametrize(
    ("role", "source"), [("inference", "local"), ("cloud", "cloud"), ("", "cloud")]
)
def test_feedback_of_before_is_told_apart_by_who_answered(
    feedback: Feedback, role: str, source: str
) -> None:
    feedback.note(replace(turn(), role=role), "good")
    document = json.loads(feedback.path.read_bytes())
    assert document.pop("source") == source
    feedback.path.write_text(json.dumps(document) + "\n")
    assert only(feedback).source == source


def test_a_source_that_is_none_counts_as_another_model(feedback: Feedback) -> None:
    feedback.note(turn(), "good")
    document = json.loads(feedback.path.read_bytes()) | {"source": ["local"]}
    feedback.path.write_text(json.dumps(document) + "\n")
    assert feedback.examples(from_cloud=False) == ()


def test_a_fix_is_the_target_with_weight_ten(feedback: Feedback) -> None:
    feedback.note(turn(), "fix", better="Ada Vey.")
    assert (only(feedback).response, only(feedback).weight) == ("Ada Vey.", 10.0)


def test_an_accepted_answer_of_the_cloud_counts_three(feedback: Feedback) -> None:
    feedback.note(turn(), "accepted", better="Ada Vey.")
    assert (only(feedback).response, only(feedback).weight) == ("Ada Vey.", 3.0)


def test_a_bad_answer_is_never_a_target(feedback: Feedback) -> None:
    feedback.note(turn(), "bad", why="made up")
    assert feedback.examples(from_cloud=True) == ()
    (verdict,) = feedback.verdicts()
    assert verdict.notes == ["made up"]
    feedback.note(turn(), "weight", weight="high")
    assert feedback.examples(from_cloud=True) == ()
    feedback.note(turn(), "fix", better="Ada Vey.")
    assert only(feedback).response == "Ada Vey."


def test_the_last_word_counts(feedback: Feedback) -> None:
    feedback.note(turn(), "good")
    feedback.note(turn(), "bad")
    assert feedback.examples(from_cloud=True) == ()
    feedback.note(turn(), "fix", better="one")
    feedback.note(turn(), "fix", better="two")
    assert only(feedback).response == "two"


@pytest.mark.parametrize(("word", "weight"), [("high", 10), ("medium", 3), ("normal", 1)])
def test_a_weight_is_by_word_whenever_it_is_said(
    feedback: Feedback, word: str, weight: float
) -> None:
    feedback.note(turn(), "weight", weight=word)
    feedback.note(turn(), "fix", better="Ada Vey.")
    assert only(feedback).weight == weight


def test_a_weight_alone_is_nothing_to_learn(feedback: Feedback) -> None:
    feedback.note(turn(), "weight", weight="high")
    assert feedback.examples(from_cloud=True) == ()


def test_turns_are_kept_apart_and_in_order(feedback: Feedback) -> None:
    feedback.note(turn("a"), "good")
    feedback.note(turn("b"), "fix", better="better")
    feedback.note(turn("a"), "weight", weight="medium")
    assert [(e.prompt[-1][1], e.weight) for e in feedback.examples(from_cloud=True)] == [
        ("a", 3.0),
        ("b", 10.0),
    ]


def test_privacy_is_kept(feedback: Feedback) -> None:
    feedback.note(turn("open"), "good")
    feedback.note(turn("secret", private=True), "good")
    feedback.note(turn("more"), "accepted", better="better", private=True)
    assert [example.private for example in feedback.examples(from_cloud=True)] == [
        False,
        True,
        True,
    ]


def test_an_example_without_a_text_is_none(feedback: Feedback) -> None:
    feedback.note(turn(answer="  "), "good")
    feedback.note(turn("x"), "fix", better=" ")
    assert feedback.examples(from_cloud=True) == ()


def test_the_file_is_the_owners_alone(feedback: Feedback) -> None:
    feedback.note(turn(), "good")
    assert stat.S_IMODE(feedback.path.stat().st_mode) == 0o600


def test_torn_and_foreign_lines_are_skipped(feedback: Feedback) -> None:
    feedback.note(turn("a"), "good")
    whole = feedback.path.read_bytes()
    damaged = json.loads(whole) | {"weight": "much"}
    robot = json.loads(whole) | {"messages": [["robot", "x"]]}
    with feedback.path.open("ab") as file:
        file.write(b"[]\n\xff\n" + json.dumps(damaged).encode() + b"\n")
        file.write(json.dumps(robot).encode() + b"\n")
        for strange in ({"answer": "half \ud83d"}, {"weight": math.nan}, {"weight": 10**400}):
            file.write(json.dumps(json.loads(whole) | strange).encode() + b"\n")
        file.write(whole[:30])
    feedback.note(turn("b"), "good")
    assert [e.prompt[-1][1] for e in feedback.examples(from_cloud=True)] == ["a", "b"]
    told = f"8 lines of {feedback.path} cannot be read and were skipped: the first is line 2."
    assert feedback.describe_damage() == told
    feedback.path.write_bytes(b"x\n" + whole)
    assert feedback.describe_damage() == (
        f"Line 1 of {feedback.path} cannot be read and was skipped."
    )
    feedback.path.write_bytes(whole + b"\n")
    assert feedback.describe_damage() == ""


def test_a_link_is_not_followed(feedback: Feedback, tmp_path: Path) -> None:
    feedback.path.parent.mkdir()
    feedback.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ShammahError, match="cannot be written down"):
        feedback.note(turn(), "good")
    assert not (tmp_path / "elsewhere").exists()


def test_writers_at_once_lose_nothing(feedback: Feedback) -> None:
    def write(number: int) -> None:
        for each in range(20):
            feedback.note(turn(f"{number} {each}"), "fix", better="x" * 5000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(feedback.examples(from_cloud=True)) == 80
