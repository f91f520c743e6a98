"""/good, /bad, /fix and /feedback: what is written down of the last answer, and what never is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shammah.chat.conversation import CORRECTED, Conversation, Turn
from shammah.errors import ShammahError
from shammah.learning.feedback import Feedback
from shammah.privacy.gate import Gate
from shammah.repl.commands import feedback
from shammah.repl.loop import Repl
from shammah.router.service import Routing
from shammah.settings.model import Settings
from shammah.terminal import external_editor
from tests.fakes.turns import CLOUD, answered


class Prompt:
    """A prompt with a conversation and nothing around it."""

    def __init__(self, home: Path) -> None:
        self.conversation = Conversation("Be short.")
        self.hints: list[str] = []
        self.feedback = Feedback(home)
        settings = Settings(home)
        self.routing = Routing(settings, {}, self.hints.append)
        self.routing.start = lambda: None  # type: ignore[method-assign]
        self.gate = Gate(settings, {})
        self.session = SimpleNamespace(settings=settings, routing=self.routing, gate=self.gate)
        self.kept: list[Turn] = []
        self.history = SimpleNamespace(
            keep=lambda turn, talk: self.kept.append(turn), undo=self.kept.remove
        )

    def say(self, command: Any, argument: str = "") -> None:
        screen = SimpleNamespace(hint=self.hints.append)
        known = {"conversation": self.conversation, "session": self.session, "screen": screen}
        known["history"] = self.history
        command(cast(Repl, SimpleNamespace(**known)), argument)

    def answered(self, question: str, answer: str, *, private: bool = False) -> None:
        turn = answered(question, answer, private=private, local=False)
        self.kept.append(self.conversation.add(turn))

    @property
    def learnt(self) -> list[tuple[str, float]]:
        return [(one.response, one.weight) for one in self.feedback.examples(from_cloud=True)]


@pytest.fixture
def prompt(tmp_path: Path) -> Prompt:
    return Prompt(tmp_path)


def test_a_good_answer_is_kept_with_its_conversation(prompt: Prompt) -> None:
    prompt.answered("Who are you?", "Shammah.")
    prompt.answered("Who made Orrin?", "Ada Vey.")
    prompt.say(feedback.good)
    (example,) = prompt.feedback.examples(from_cloud=True)
    assert [role for role, _ in example.prompt] == ["system", "user", "assistant", "user"]
    assert example.response == "Ada Vey."
    (verdict,) = prompt.feedback.verdicts()
    assert (verdict.turn.role, verdict.turn.model) == ("inference", "starter")


def test_a_good_answer_of_claudes_is_kept_and_not_learnt_unless_that_is_allowed(
    prompt: Prompt,
) -> None:
    prompt.kept.append(prompt.conversation.add(answered("Who?", "Claude's.", CLOUD)))
    prompt.say(feedback.good)
    assert prompt.hints[-1] == feedback.LEFT_OUT
    assert prompt.feedback.examples(from_cloud=False) == ()
    assert prompt.learnt == [("Claude's.", 1.0)]
    settings = prompt.session.settings
    prompt.session.settings = replace(settings, train=replace(settings.train, from_cloud=True))
    prompt.say(feedback.good)
    assert prompt.hints[-1] == feedback.STORED
    prompt.say(feedback.fix, "Mine.")
    assert [one.source for one in prompt.feedback.examples(from_cloud=False)] == ["person"]


@pytest.mark.parametrize(
    ("turn", "source"),
    [
        (answered("a", "b"), "local"),
        (answered("a", "b", foreign=True), "cloud"),
        (answered("a", "b", finish="failed", stored=("local", "model_ready")), "local"),
        (answered("a", "b", finish="failed", stored=("", "")), "cloud"),
    ],
)
def test_whose_an_answer_is(prompt: Prompt, turn: Turn, source: str) -> None:
    assert feedback.judged(prompt.conversation, turn, []).source == source


def test_a_bad_one_is_kept_as_no_example_until_it_is_fixed(prompt: Prompt) -> None:
    prompt.answered("Who made Orrin?", "Nobody.")
    prompt.say(feedback.bad, "made up")
    assert prompt.learnt == []
    prompt.say(feedback.fix, "Ada Vey.")
    assert prompt.learnt == [("Ada Vey.", 10.0)]


def test_a_weight_is_of_the_last_answer(prompt: Prompt) -> None:
    prompt.answered("Who made Orrin?", "Nobody.")
    prompt.say(feedback.fix, "Ada Vey.")
    prompt.say(feedback.feedback, "medium")
    assert prompt.learnt == [("Ada Vey.", 3.0)]


@pytest.mark.parametrize("argument", ["", "huge"])
def test_a_weight_is_one_of_three(prompt: Prompt, argument: str) -> None:
    prompt.answered("a", "b")
    with pytest.raises(ShammahError, match="high, medium, normal"):
        prompt.say(feedback.feedback, argument)


def test_an_accepted_answer_is_the_target(prompt: Prompt) -> None:
    prompt.answered("Who made Orrin?", "Nobody.")
    old = prompt.conversation.turns[-1]
    context = SimpleNamespace(conversation=prompt.conversation, session=prompt.session)
    feedback.accept(cast(Repl, context), old, "Ada Vey.")
    assert prompt.learnt == [("Ada Vey.", 3.0)]


def test_privacy_is_kept(prompt: Prompt) -> None:
    prompt.answered("secret", "yes", private=True)
    prompt.say(feedback.good)
    assert [one.private for one in prompt.feedback.examples(from_cloud=True)] == [True]


def test_without_an_answer_nothing_is_written(prompt: Prompt) -> None:
    for command in (feedback.good, feedback.bad):
        prompt.say(command)
    prompt.answered("cancelled", "")
    prompt.say(feedback.good)
    for command, argument in ((feedback.fix, "x"), (feedback.feedback, "high")):
        with pytest.raises(ShammahError, match="no answer"):
            prompt.say(command, argument)
    assert not prompt.feedback.path.exists()


def test_the_conversation_goes_on_from_a_fix(prompt: Prompt) -> None:
    prompt.answered("Who made Orrin?", "Nobody.")
    prompt.say(feedback.fix, "Ada Vey.")
    told = [one.content for one in prompt.conversation.with_question("When?")]
    assert told == ["Be short.", "Who made Orrin?", "Ada Vey.", "When?"]
    (turn,) = prompt.conversation.turns
    assert (turn.corrected, turn.complete, turn.private) == (True, True, False)
    assert prompt.kept == [turn]
    assert (turn.answer, turn.finish) == ("Ada Vey.", CORRECTED)


def test_a_fix_of_a_fix_is_still_of_what_the_model_said(prompt: Prompt) -> None:
    prompt.answered("Who made Orrin?", "Nobody.")
    prompt.say(feedback.fix, "Ada.")
    prompt.say(feedback.fix, "Ada Vey.")
    prompt.say(feedback.feedback, "medium")
    assert prompt.learnt == [("Ada Vey.", 3.0)]
    (verdict,) = prompt.feedback.verdicts()
    assert verdict.turn.answer == "Nobody."
    prompt.say(feedback.bad)
    assert prompt.learnt == []


def test_a_fix_is_private_if_the_turn_is_or_its_own_words_are(prompt: Prompt) -> None:
    prompt.answered("secret", "yes", private=True)
    prompt.say(feedback.fix, "no")
    assert prompt.conversation.turns[-1].private
    prompt.answered("Who made Orrin?", "Nobody.")
    prompt.say(feedback.fix, "Write to ada.vey@orrin.io.")
    assert "Private, because it contains an e-mail address" in prompt.hints[-2]
    assert prompt.conversation.turns[-1].private
    assert [one.private for one in prompt.kept] == [True, True]
    assert [one.private for one in prompt.feedback.examples(from_cloud=True)] == [True, True]


def test_a_fix_without_words_is_written_in_the_editor(
    prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt.answered("Who made Orrin?", "Nobody.")
    monkeypatch.setattr(external_editor, "edit_text", lambda text, name: f"{text} \n")
    prompt.say(feedback.fix)
    assert prompt.hints == ["Nothing was changed, so nothing was stored."]
    assert not prompt.conversation.turns[-1].corrected
    monkeypatch.setattr(external_editor, "edit_text", lambda text, name: "Ada Vey,\nin 1990.\n")
    prompt.say(feedback.fix)
    assert prompt.learnt == [("Ada Vey,\nin 1990.", 10.0)]


def test_that_somebody_was_in_danger_is_not_written_down(prompt: Prompt) -> None:
    prompt.answered("I want to kill myself tonight.", "Please call somebody.")
    prompt.say(feedback.good)
    prompt.say(feedback.bad)
    with pytest.raises(ShammahError, match="no answer"):
        prompt.say(feedback.fix, "x")
    assert not prompt.feedback.path.exists()
