"""The commands from which the local model learns: /good, /bad, /fix, /feedback."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shammah.conversation import Conversation, Turn
from shammah.errors import ShammahError

if TYPE_CHECKING:
    from shammah.feedback import Feedback, JudgedTurn
    from shammah.repl.commands import Context

KEPT = "Kept for `shammah train`."


def good(context: Context) -> None:
    """``/good``: the last answer is as it should be."""
    turn = last_turn(context)
    if turn is not None:
        _feedback(context).note_good(turn)
        context.screen.hint(KEPT)


def bad(context: Context) -> None:
    """``/bad [NOTE]``: it is not. Nothing is learnt from that until /fix says what is right."""
    turn = last_turn(context)
    if turn is not None:
        _feedback(context).note_bad(turn, context.argument)
        context.screen.hint("/fix BETTER ANSWER says what it should have been.")


def fix(context: Context) -> None:
    """``/fix BETTER ANSWER``."""
    if not context.argument:
        raise ShammahError("usage", "Write after /fix what the answer should have been.")
    _feedback(context).note_fix(_needed(context), context.argument)
    context.screen.hint(KEPT)


def feedback(context: Context) -> None:
    """``/feedback high``, ``medium`` or ``normal``: how much the last answer counts."""
    from shammah.examples import WEIGHTS

    if context.argument not in WEIGHTS:
        words = ", ".join(WEIGHTS)
        why = f"/feedback is one of {words}" + (
            f", not {context.argument!r:.40}." if context.argument else "."
        )
        raise ShammahError("usage", why)
    verdict = _feedback(context)
    verdict.note_weight(_needed(context), context.argument)
    weight = WEIGHTS[context.argument]
    context.screen.hint(f"It counts {weight:g}-fold, once /good or /fix says what to learn.")


def accept(context: Context, old: Turn, better: str, *, private: bool = False) -> None:
    """``better`` was taken instead of the answer of ``old`` (after ``/redo cloud``)."""
    turn = judged(context.conversation, old, before=context.conversation.turns[:-1])
    if not _is_grave(context, turn):
        _feedback(context).note_accepted(turn, better, private=private)


def last_turn(context: Context) -> JudgedTurn | None:
    """The last answer with all that the model had been told; ``None``: there is none to speak
    of. That somebody was in danger is not written down."""
    turns = context.conversation.turns
    if not turns or not turns[-1].answer:
        return None
    turn = judged(context.conversation, turns[-1], before=turns[:-1])
    return None if _is_grave(context, turn) else turn


def judged(conversation: Conversation, turn: Turn, before: list[Turn]) -> JudgedTurn:
    """``turn``, which came after ``before``."""
    from shammah.feedback import JudgedTurn

    told = Conversation(conversation.system, before, conversation.system_private)
    by = turn.provenance
    return JudgedTurn(
        told.with_question(turn.question, private=turn.private),
        turn.answer,
        by.role if by else "",
        by.model if by else "",
        by.adapter if by else "",
        turn.private,
    )


def _needed(context: Context) -> JudgedTurn:
    turn = last_turn(context)
    if turn is None:
        raise ShammahError("usage", "There is no answer to note it of.")
    return turn


def _is_grave(context: Context, turn: JudgedTurn) -> bool:
    return context.session.routing.begin(turn.messages).question.danger is not None


def _feedback(context: Context) -> Feedback:
    from shammah.feedback import Feedback

    return Feedback(context.session.settings.home)
