"""/good, /bad, /fix and /feedback: what is written down of the last answer, and what never is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shammah.bus.messages import Provenance
from shammah.config import Settings
from shammah.conversation import Conversation, Turn
from shammah.errors import ShammahError
from shammah.feedback import Feedback
from shammah.repl import feedback_commands
from shammah.repl.commands import Context
from shammah.routing import Routing

LOCAL = Provenance("inference", "starter")


class Prompt:
    """A prompt with a conversation and nothing around it."""

    def __init__(self, home: Path) -> None:
        self.conversation = Conversation("Be short.")
        self.hints: list[str] = []
        self.feedback = Feedback(home)
        settings = Settings(home)
        self.routing = Routing(settings, {})
        self.routing.start = lambda: None  # type: ignore[method-assign]
        self.session = SimpleNamespace(settings=settings, routing=self.routing)

    def say(self, command: Any, argument: str = "") -> None:
        screen = SimpleNamespace(hint=self.hints.append)
        known = {"conversation": self.conversation, "session": self.session, "screen": screen}
        command(cast(Context, SimpleNamespace(**known, argument=argument)))

    def answered(self, question: str, answer: str, *, private: bool = False) -> None:
        self.conversation.add(Turn(question, answer, LOCAL, private=private), local=False)

    @property
    def learnt(self) -> list[tuple[str, float]]:
        return [(one.response, one.weight) for one in self.feedback.examples()]


@pytest.fixture
def prompt(tmp_path: Path) -> Prompt:
    return Prompt(tmp_path)


def test_a_good_answer_is_kept_with_its_conversation(prompt: Prompt) -> None:
    prompt.answered("Who are you?", "Shammah.")
    prompt.answered("Who made Orrin?", "Ada Vey.")
    prompt.say(feedback_commands.good)
    (example,) = prompt.feedback.examples()
    assert [role for role, _ in example.prompt] == ["system", "user", "assistant", "user"]
    assert example.response == "Ada Vey."
    (verdict,) = prompt.feedback.verdicts()
    assert (verdict.turn.role, verdict.turn.model) == ("inference", "starter")


def test_a_bad_one_is_kept_as_no_example_until_it_is_fixed(prompt: Prompt) -> None:
    prompt.answered("Who made Orrin?", "Nobody.")
    prompt.say(feedback_commands.bad, "made up")
    assert prompt.learnt == []
    prompt.say(feedback_commands.fix, "Ada Vey.")
    assert prompt.learnt == [("Ada Vey.", 10.0)]


def test_a_weight_is_of_the_last_answer(prompt: Prompt) -> None:
    prompt.answered("Who made Orrin?", "Nobody.")
    prompt.say(feedback_commands.fix, "Ada Vey.")
    prompt.say(feedback_commands.feedback, "medium")
    assert prompt.learnt == [("Ada Vey.", 3.0)]


@pytest.mark.parametrize("argument", ["", "huge"])
def test_a_weight_is_one_of_three(prompt: Prompt, argument: str) -> None:
    prompt.answered("a", "b")
    with pytest.raises(ShammahError, match="high, medium, normal"):
        prompt.say(feedback_commands.feedback, argument)


def test_an_accepted_answer_is_the_target(prompt: Prompt) -> None:
    prompt.answered("Who made Orrin?", "Nobody.")
    old = prompt.conversation.turns[-1]
    context = SimpleNamespace(conversation=prompt.conversation, session=prompt.session)
    feedback_commands.accept(cast(Context, context), old, "Ada Vey.")
    assert prompt.learnt == [("Ada Vey.", 3.0)]


def test_privacy_is_kept(prompt: Prompt) -> None:
    prompt.answered("secret", "yes", private=True)
    prompt.say(feedback_commands.good)
    assert [one.private for one in prompt.feedback.examples()] == [True]


def test_without_an_answer_nothing_is_written(prompt: Prompt) -> None:
    for command in (feedback_commands.good, feedback_commands.bad):
        prompt.say(command)
    prompt.answered("cancelled", "")
    prompt.say(feedback_commands.good)
    for command, argument in ((feedback_commands.fix, "x"), (feedback_commands.feedback, "high")):
        with pytest.raises(ShammahError, match="no answer"):
            prompt.say(command, argument)
    assert not prompt.feedback.path.exists()


def test_a_fix_without_words_is_refused(prompt: Prompt) -> None:
    prompt.answered("a", "b")
    with pytest.raises(ShammahError, match="Write after /fix"):
        prompt.say(feedback_commands.fix)


def test_that_somebody_was_in_danger_is_not_written_down(prompt: Prompt) -> None:
    prompt.answered("I want to kill myself tonight.", "Please call somebody.")
    prompt.say(feedback_commands.good)
    prompt.say(feedback_commands.bad)
    with pytest.raises(ShammahError, match="no answer"):
        prompt.say(feedback_commands.fix, "x")
    assert not prompt.feedback.path.exists()
