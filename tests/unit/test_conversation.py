"""What a model is told of the turns so far."""

from __future__ import annotations

from shammah.bus.messages import ChatMessage, Provenance
from shammah.conversation import Conversation, Turn

BY = Provenance("inference", "starter")


def said(conversation: Conversation, question: str) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.with_question(question)]


def test_the_first_question_stands_alone() -> None:
    assert Conversation().with_question("hello") == (ChatMessage("user", "hello"),)


def test_the_system_prompt_comes_first_and_once() -> None:
    conversation = Conversation("Be brief.")
    conversation.add(Turn("one", "1", BY))
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
    conversation.add(Turn("one", "half an ans", None, complete=False))
    assert ("assistant", "half an ans") in said(conversation, "two")


def test_a_turn_without_an_answer_is_left_out() -> None:
    """Roles alternate, which chat templates insist on."""
    conversation = Conversation("Be brief.")
    for answer in ("", "1", "", "", "2", ""):
        conversation.add(Turn("question", answer, BY))
    roles = [role for role, _ in said(conversation, "last")]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]


def test_clear_forgets_the_turns_and_keeps_the_system_prompt() -> None:
    conversation = Conversation("Be brief.")
    conversation.add(Turn("one", "1", BY))
    conversation.clear()
    assert said(conversation, "two") == [("system", "Be brief."), ("user", "two")]


def test_conversations_do_not_share_their_turns() -> None:
    Conversation().add(Turn("one", "1", BY))
    assert Conversation().turns == []
