"""/redo and /edit put one turn in the place of another, in the conversation and in the history."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shammah.chat.conversation import Conversation, Turn
from shammah.privacy import Mark
from shammah.repl.commands import routing
from shammah.router.decision import Override
from shammah.router.statistics import Label
from shammah.settings.model import CloudSettings, Settings
from shammah.terminal import external_editor as editing
from tests.fakes.turns import answered


def turn(question: str, answer: str, finish: str = "stop") -> Turn:
    return answered(question, answer, finish=finish)


class World:
    """A prompt that keeps what it is answered; nothing is shown and nobody is asked."""

    def __init__(self, answer: Callable[[str], Turn], *earlier: str) -> None:
        self.conversation = Conversation("", [])
        self.kept: list[Turn] = []
        self.history = SimpleNamespace(undo=self.kept.remove)
        self.asked: list[tuple[str, bool]] = []
        self._answer = answer
        for question in earlier:
            self.keep(turn(question, "first"))
        gate = SimpleNamespace(judge=lambda *_, **__: Mark(False), private=False, never=False)
        quiet = SimpleNamespace(**{name: lambda _: None for name in ("answer", "hint", "line")})
        routing = SimpleNamespace(label=lambda *_: False)
        settings = Settings(Path("nowhere"), cloud=CloudSettings(api_key="sk-planted"))
        self.context: Any = SimpleNamespace(
            conversation=self.conversation,
            history=self.history,
            session=SimpleNamespace(gate=gate, cloud=object(), routing=routing, settings=settings),
            screen=quiet,
            ask=self._ask,
            inquire=lambda _: None,
            override=Override(),
        )

    def keep(self, one: Turn) -> None:
        self.conversation.turns.append(one)
        self.kept.append(one)

    def _ask(self, question: str, private: bool, override: Override, *, again: bool) -> None:
        self.asked.append((question, private))
        self.keep(self._answer(question))

    def said(self) -> list[tuple[str, str]]:
        """Questions and answers; the history must have the same."""
        said = [(one.question, one.answer) for one in self.conversation.turns]
        assert [(one.question, one.answer) for one in self.kept] == said
        return said


def test_a_better_answer_takes_the_place_of_the_first() -> None:
    world = World(lambda question: turn(question, "second"), "a", "b")
    routing.redo(world.context, "")
    assert world.said() == [("a", "first"), ("b", "second")]


def test_the_next_question_is_no_verdict_on_two_answers() -> None:
    world = World(lambda question: turn(question, "second"), "a")
    typed, hints = iter(["What is next?", "2"]), []
    world.context.inquire = lambda _: next(typed)
    world.context.screen.hint = hints.append
    labels = []
    world.context.session.routing.label = lambda label, outcome: labels.append(label)
    routing.redo(world.context, "")
    assert labels == [Label.WORSE, Label.BETTER]
    assert "Type 1, 2 or s, or press Enter to skip." in hints


@pytest.mark.parametrize("earlier", [("a",), ("a", "b")])
def test_an_answer_without_text_leaves_the_first(earlier: tuple[str, ...]) -> None:
    world = World(lambda question: turn(question, "", "refusal"), *earlier)
    routing.redo(world.context, "")
    assert world.said() == [(question, "first") for question in earlier]


def test_a_question_without_an_answer_is_replaced_in_the_history_too() -> None:
    world = World(lambda question: turn(question, "second"), "a")
    world.keep(turn("b", "", "failed"))
    routing.redo(world.context, "local")
    assert world.said() == [("a", "first"), ("b", "second")]


def test_one_that_was_cut_short_leaves_the_first() -> None:
    world = World(lambda question: turn(question, "sec", "cancelled"), "a", "b")
    routing.redo(world.context, "")
    assert world.said() == [("a", "first"), ("b", "first")]


def test_who_leaves_meanwhile_finds_the_first() -> None:
    def leave(question: str) -> Turn:
        world.keep(turn(question, "sec", "left"))
        raise SystemExit

    world = World(leave, "a", "b")
    with pytest.raises(SystemExit):
        routing.redo(world.context, "")
    assert world.said() == [("a", "first"), ("b", "first")]


def test_an_edited_question_is_private_if_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editing, "edit_text", lambda _: "!private\nmy door code")
    world = World(lambda question: turn(question, "second"), "a")
    routing.edit(world.context, "")
    assert world.asked == [("my door code", True)]
    assert world.said() == [("my door code", "second")]
