"""The local model takes over what others have answered, says so once, and reads each turn once."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from shammah.bus.messages import ChatMessage, Done, Loading, Provenance, Ready, State, Usage
from shammah.chat.conversation import Conversation, Turn
from shammah.chat.session import Notices
from shammah.chat.warmup import WarmUp
from shammah.router.decision import Override, RouteDecision, View, decide
from shammah.router.route import Question
from shammah.router.statistics import Snapshot
from shammah.settings.model import RouterSettings
from tests.fakes.turns import answered

CLAUDE, OURS = Provenance("cloud", "claude"), Provenance("inference", "org/m")
READY = Ready("org/m", engine="e")


class World:
    """A session that remembers what was read ahead."""

    def __init__(self, *turns: Turn) -> None:
        self.read: list[tuple[ChatMessage, ...]] = []
        self.conversation = Conversation("", list(turns))
        self.session: Any = SimpleNamespace(
            local=SimpleNamespace(peer=None),
            notices=Notices(),
            read_ahead=lambda turns, adapter: self.read.append(turns),
        )
        self.warm_up = WarmUp(self.session, self.conversation)

    def be(self, state: State, run_id: str = "1") -> list[str]:
        latest = SimpleNamespace(run_id=run_id, status=SimpleNamespace(state=state))
        self.session.local.peer = SimpleNamespace(latest=latest, welcome=object())
        self.warm_up.look()
        return self.session.notices.take()


def test_it_takes_over_once_with_private_turns_too() -> None:
    world = World(answered("a", "b", CLAUDE), answered("c", "d", CLAUDE, private=True))
    assert world.be(Loading("org/m", "s", 0, 1)) == []
    said = "The local model (m) is ready, and has the 2 turns so far."
    assert world.be(READY) == [said]
    assert [[one.content for one in turns] for turns in world.read] == [["a", "b", "c", "d"]]
    assert world.be(READY) == []
    assert len(world.read) == 1


def test_its_own_conversation_is_read_anew_after_a_restart_without_a_word() -> None:
    world = World(answered("a", "b", OURS))
    assert world.be(READY) == world.be(READY, "2") == []
    assert len(world.read) == 2


def test_a_turn_of_somebody_else_is_read_when_it_has_ended() -> None:
    world = World()
    assert world.be(READY) == []
    with world.warm_up.answering():
        world.conversation.add(answered("a", "b", CLAUDE))
        world.warm_up.look()
        assert world.read == []
    assert len(world.read) == 1
    with world.warm_up.answering():
        world.conversation.add(answered("c", "d", OURS))
    assert len(world.read) == 1


def test_its_own_answer_that_fills_the_context_is_read_since_the_beginning_may_have_to_go() -> None:
    world, ready = World(), replace(READY, context_length=1000)
    assert world.be(ready) == []
    for tokens, times in ((650, 0), (670, 1), (200, 1)):
        turn = answered("a", "b", OURS)
        end = turn.end
        assert isinstance(end, Done)
        turn = replace(turn, end=replace(end, usage=Usage(tokens - 50, 50)))
        with world.warm_up.answering():
            world.conversation.add(turn)
        assert len(world.read) == times


def test_its_own_answer_that_was_cut_short_is_not_another_ones() -> None:
    view = View(Ready("org/m"), None, False, "claude")
    decision = decide(Question(), Override(), view, Snapshot(), RouterSettings())
    assert isinstance(decision, RouteDecision)
    assert World(Turn("a", "b", decision=decision)).be(READY) == []


def test_what_the_person_has_corrected_is_read_without_a_word() -> None:
    world = World()
    assert world.be(READY) == []
    world.conversation.add(answered("a", "b", OURS))
    assert world.be(READY) == []
    world.conversation.correct("c", private=False)
    assert world.be(READY) == []
    assert [[one.content for one in turns] for turns in world.read] == [["a", "c"]]
