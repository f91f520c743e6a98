"""Continuing a stored conversation."""

from __future__ import annotations

from dataclasses import replace

from shammah.chat.conversation import Conversation
from shammah.errors import ShammahError
from shammah.history.record import StoredConversation
from shammah.history.recorder import HOW_IT_FILLS, NOTHING, Recorder
from shammah.privacy.gate import Gate


def read_conversation(history: Recorder, number: int) -> StoredConversation:
    """Conversation ``number``; 0: the newest.

    Raises:
        ShammahError: ``history_unknown``, ``history_empty``; also as the store does.
    """
    number = number or history.read(lambda store: store.newest())
    if not number:
        raise ShammahError("history_empty", NOTHING, HOW_IT_FILLS)
    return history.read(lambda store: store.get(number))


def resume_conversation(
    stored: StoredConversation, conversation: Conversation, gate: Gate, system: str | None
) -> Conversation:
    """Make ``conversation`` the one that was stored. Marks stay, and the rules of today apply, too.

    ``system``: the system prompt that was asked for; ``None``: the conversation's own.
    """
    conversation.clear()
    conversation.system = stored.system if system is None else system
    conversation.system_private = gate.rules.mark(conversation.system).private or (
        system is None and stored.system_private
    )
    answers: dict[str, str] = {}
    for turn in stored.turns:
        if not turn.corrected:
            answers[turn.question] = turn.answer
        if turn.undone:
            continue
        private = (
            turn.private
            or gate.rules.mark(turn.question).private
            or gate.answer_is_private(turn.answer, local=turn.corrected or turn.local)
        )
        given = answers.get(turn.question, "") if turn.corrected else None
        conversation.add(replace(turn, private=private, given=given))
    return conversation
