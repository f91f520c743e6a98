"""What a model is told of the turns so far."""

from __future__ import annotations

import pytest

from shammah.bus.messages import ChatMessage
from shammah.chat.conversation import Conversation, Turn
from tests.fakes.turns import CLOUD, answered


def said(conversation: Conversation, question: str) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.with_question(question)]


def test_the_first_question_stands_alone() -> None:
    assert Conversation().with_question("hello") == (ChatMessage("user", "hello"),)


def test_the_system_prompt_comes_first_and_once() -> None:
    conversation = Conversation("Be brief.")
    conversation.add(answered("one", "1"))
    assert said(conversation, "two") == [
        ("system", "Be brief."),
        ("user", "one"),
        ("assistant", "1"),
        ("user", "two"),
    ]


def test_asking_does_not_change_the_conversation() -> None:
    conversation = Conversation()
    conversation.with_question("one")
    assert said(conversation, "two") == [("user", "two")]


def test_an_answer_that_was_cut_short_stays_as_far_as_it_came() -> None:
    conversation = Conversation()
    conversation.add(answered("one", "half an ans", finish="cancelled"))
    assert ("assistant", "half an ans") in said(conversation, "two")


def test_one_that_was_cut_short_in_a_loop_is_left_out() -> None:
    conversation = Conversation()
    conversation.add(answered("one", "round and round it goes, " * 40, finish="timeout"))
    assert said(conversation, "two") == [("user", "two")]
    conversation.add(answered("three", "round and round it goes, " * 40))
    assert len(said(conversation, "four")) == 3


def test_a_turn_without_an_answer_is_left_out() -> None:
    """Roles alternate, which chat templates insist on."""
    conversation = Conversation("Be brief.")
    for answer in ("", "1", "", "", "2", ""):
        conversation.add(answered("question", answer))
    roles = [role for role, _ in said(conversation, "last")]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]


def test_a_question_whose_program_was_killed_goes_before_the_next() -> None:
    conversation = Conversation()
    for question in ("one", "two"):
        conversation.add(Turn(question))
    assert said(conversation, "three") == [("user", "one\n\ntwo\n\nthree")]
    conversation.add(answered("three", "", finish="failed"))
    conversation.add(answered("four", "4"))
    assert said(conversation, "five") == [
        ("user", "one\n\ntwo\n\nfour"),
        ("assistant", "4"),
        ("user", "five"),
    ]


@pytest.mark.parametrize(("private", "asked"), [(False, "go on"), (True, "secret\n\ngo on")])
def test_a_private_one_makes_no_other_private(private: bool, asked: str) -> None:
    lost = Turn("secret", private=True)
    messages = Conversation(turns=[lost]).with_question("go on", private=private)
    assert messages == (ChatMessage("user", asked, private),)


def test_clear_forgets_the_turns_and_keeps_the_system_prompt() -> None:
    conversation = Conversation("Be brief.")
    conversation.add(answered("one", "1"))
    conversation.clear()
    assert said(conversation, "two") == [("system", "Be brief."), ("user", "two")]


def test_conversations_do_not_share_their_turns() -> None:
    Conversation().add(answered("one", "1"))
    assert Conversation().turns == []


class TestPrivateTurns:
    def test_marks_stick_to_both_halves_of_a_turn(self) -> None:
        conversation = Conversation("Be brief.")
        conversation.add(answered("one", "1"))
        conversation.add(answered("two", "2", private=True))
        messages = conversation.with_question("three")
        assert [message.private for message in messages] == [False, False, False, True, True, False]
        assert conversation.private_turns == 1

    def test_a_question_and_the_system_prompt_can_be_private(self) -> None:
        conversation = Conversation("Be brief.", system_private=True)
        messages = conversation.with_question("one", private=True)
        assert [message.private for message in messages] == [True, True]

    def test_a_local_answer_after_a_private_turn_is_private_too(self) -> None:
        """The model has seen that turn and may repeat it."""
        conversation = Conversation()
        assert not conversation.add(answered("zero", "0")).private
        conversation.add(answered("one", "1", private=True))
        assert conversation.add(answered("what was that?", "1")).private

    def test_a_cloud_answer_after_a_private_turn_is_not(self) -> None:
        """The cloud was not told of it."""
        conversation = Conversation()
        conversation.add(answered("one", "1", private=True))
        by_cloud = answered("two", "2", CLOUD)
        assert not conversation.add(by_cloud).private

    def test_a_private_system_prompt_makes_local_answers_private(self) -> None:
        conversation = Conversation("My name is Jo.", system_private=True)
        assert conversation.add(Turn("who am I?", "Jo")).private
        assert not conversation.add(answered("two", "2", CLOUD)).private

    def test_a_private_question_that_nobody_answered_was_seen_by_nobody(self) -> None:
        conversation = Conversation()
        conversation.add(answered("one", "", finish="failed", private=True))
        assert not conversation.add(answered("two", "2")).private
