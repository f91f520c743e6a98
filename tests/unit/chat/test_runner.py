"""One question of a conversation: shown as it comes, and kept whatever happens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shammah.bus.messages import ChatMessage, Done, Token, Usage
from shammah.chat.conversation import (
    Conversation,
    Notice,
    Prompt,
    Step,
    Turn,
    TurnInProgress,
    Waiting,
)
from shammah.chat.runner import TurnRunner
from shammah.history.record import facts_of, turn_of
from shammah.privacy.gate import Gate
from shammah.router.route import Override, Reason, RouteDecision, Target
from shammah.settings.model import Settings
from tests.fakes.turns import answered, done

LOCAL = RouteDecision(Target.LOCAL, Reason.MODEL_READY)
STEPS: tuple[Step, ...] = (
    Notice("Call somebody.", urgent=True),
    Waiting("inference", None),
    LOCAL,
    Token("r", 1, "hm", reasoning=True),
    Token("r", 2, "half"),
    Token("r", 3, " said"),
    done(),
)


class World:
    """A session that says what it is told to, and a sink and a history that remember."""

    def __init__(self, steps: Iterable[Step], home: Path, think: str = "on") -> None:
        self.asked: list[tuple[ChatMessage, ...]] = []
        self.log: list[str] = []
        self.turns: list[Turn] = []
        self._steps = steps
        gate = Gate(Settings(home), {})
        session: Any = SimpleNamespace(
            gate=gate,
            settings=Settings(home).with_think(think),
            answer=self._answer,
            answer_is_private=lambda turn: gate.answer_is_private(turn.text, local=turn.local),
        )
        self.conversation = Conversation()
        self.runner = TurnRunner(session, self.conversation, self)

    def _answer(self, turn: TurnInProgress, messages: tuple[ChatMessage, ...]) -> Iterator[Step]:
        self.asked.append(messages)
        for step in self._steps:
            turn.feed(step)
            yield step

    def ask(self, prompt: Prompt) -> None:
        self.runner.begin(prompt)
        self.runner.answer(self)

    # the history

    def begin(self, turn: Turn, conversation: Conversation) -> None:
        self.log.append(f"begin {turn.finish}")

    def settle(self) -> bool:
        self.log.append("settle")
        return True

    def keep(self, turn: Turn, conversation: Conversation) -> None:
        assert conversation.turns[-1] is turn
        self.log.append(f"keep {turn.finish}")
        self.turns.append(turn)

    # the sink

    def notice(self, text: str, *, urgent: bool) -> None:
        self.log.append(f"notice {text}")

    def progress(self, text: str, step: Step) -> None:
        self.log.append(f"progress {text}")

    def thought(self, text: str) -> None:
        self.log.append(f"thought {text}")

    def piece(self, text: str, turn: TurnInProgress) -> None:
        self.log.append(f"piece {text}")
        if text == "raise":
            raise KeyboardInterrupt

    def ended(self, turn: Turn) -> None:
        self.log.append(f"ended {turn.answer}")


def test_a_turn_is_begun_before_it_is_asked_and_kept_before_it_is_shown_as_ended(
    tmp_path: Path,
) -> None:
    world = World(STEPS, tmp_path)
    world.ask(Prompt("q"))
    assert world.log == [
        "begin left",
        "notice Call somebody.",
        "progress inference: Starting",
        "settle",
        "progress asking local ...",
        "progress thinking ... 1 token",
        "piece half",
        "piece  said",
        "keep stop",
        "ended half said",
    ]
    assert world.runner.in_hand is None
    assert world.turns == world.conversation.turns


def test_what_did_not_fit_is_told_once_for_each_cut_and_after_a_restart_no_more(
    tmp_path: Path,
) -> None:
    told = []
    for unseen in (0, 14, 14, 0, 14, 20):
        end = replace(done(), usage=Usage(unseen=unseen, messages=37))
        world = World((LOCAL, Token("r", 1, "said"), end), tmp_path)
        world.conversation.turns = [turn_of(facts_of(turn)) for turn in told]
        world.ask(Prompt("q"))
        told.append(world.turns[-1])
    notices = [turn.end.notices for turn in told if isinstance(turn.end, Done)]
    said = "The conversation is longer than the model's context. The first {} of 37 messages "
    said += "no longer fit and were not seen."
    assert notices == [(), (said.format(14),), (), (), (), (said.format(20),)]


def test_thoughts_are_shown_to_who_wants_them_and_are_no_part_of_the_answer(tmp_path: Path) -> None:
    world = World(STEPS, tmp_path, "show")
    world.ask(Prompt("q"))
    assert "thought hm" in world.log
    assert [one.content for one in world.conversation.with_question("next")] == [
        "q",
        "half said",
        "next",
    ]


def test_what_is_raised_ends_it_and_what_has_come_is_kept(tmp_path: Path) -> None:
    world = World((LOCAL, Token("r", 1, "half"), Token("r", 2, "raise")), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        world.ask(Prompt("q"))
    assert world.log[-1] == "keep left"
    assert [turn.answer for turn in world.conversation.turns] == ["halfraise"]
    assert world.runner.keep() is None


def test_marks_are_those_of_the_prompt_and_of_the_turns(tmp_path: Path) -> None:
    world = World((LOCAL, Token("r", 1, "mail jo@acme.de"), done()), tmp_path)
    world.conversation.add(answered("a", "b", private=True))
    world.ask(Prompt("jo@acme.de", override=Override(Target.CLOUD)))
    assert [one.private for one in world.asked[0]] == [True, True, True]
    assert world.log[0] == (
        "notice Private, because it contains an e-mail address (privacy.emails). "
        "It stays on this machine."
    )
    world.conversation.clear()
    world.ask(Prompt("q"))
    assert [one.private for one in world.asked[1]] == [False]
    assert world.turns[-1].private  # because of its answer
