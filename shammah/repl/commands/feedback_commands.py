"""The commands that the local model learns from: /good, /bad, /fix, /feedback."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shammah.chat.conversation import Conversation
from shammah.chat.turn import Turn
from shammah.errors import UsageError
from shammah.router.statistics import Label

if TYPE_CHECKING:
    from shammah.learning.feedback import Feedback, JudgedTurn
    from shammah.repl.commands.table import Context

KEPT = "Stored for `shammah train`."


def good(context: Context) -> None:
    """``/good``: the last answer is as it should be."""
    turns = context.conversation.turns
    if turns and turns[-1].corrected:
        context.screen.hint("That answer is your own, and already stored.")
        return
    _rate(context, Label.GOOD)
    turn = last_turn(context)
    if turn is not None:
        _feedback(context).note(turn, "good")
        context.screen.hint(KEPT)


def bad(context: Context) -> None:
    """``/bad [NOTE]``: it is not. Nothing is learnt from that until /fix says what is right."""
    _rate(context, Label.BAD)
    turn = last_turn(context)
    if turn is not None:
        _feedback(context).note(turn, "bad", why=context.argument)
        context.screen.hint("To say what it should have been: /fix BETTER ANSWER.")


def _rate(context: Context, label: Label) -> None:
    if _label(context, label):
        context.screen.hint("Noted. This will count when you ask something similar.")
    else:
        context.screen.hint("There is no answer to rate yet.")


def _label(context: Context, label: Label) -> bool:
    """Label the last answer in the statistics; return whether they know it."""
    turns = context.conversation.turns
    outcome = turns[-1].outcome if turns else ""
    known = context.session.routing.label(label, outcome)
    if known:
        context.conversation.label(label, outcome)
    return known


def fix(context: Context) -> None:
    """``/fix BETTER ANSWER``, or ``/fix`` and the person's editor: the conversation continues from
    that answer."""
    turn, screen, talk = _needed(context), context.screen, context.conversation
    old = talk.turns[-1]
    better = context.argument or _edited(old.answer)
    if not better:
        screen.hint("Nothing was changed, so nothing was stored.")
        return
    mark = context.session.gate.judge(better, private=old.private)
    _feedback(context).note(turn, "fix", better=better, private=mark.private)
    if mark.why:
        screen.hint(f"Private, because {mark.why}. It stays on this machine.")
    context.history.keep(talk.correct(better, private=mark.private), talk)
    context.history.undo(old)
    screen.hint(f"{KEPT} The conversation continues from your answer.")
    _label(context, Label.EDIT)


def _edited(answer: str) -> str:
    """Return what the person makes of ``answer``; empty if it is the same."""
    from shammah.terminal.external_editor import edit_text

    better = edit_text(answer, "answer.md")
    return "" if better.strip() == answer.strip() else better.rstrip()


def feedback(context: Context) -> None:
    """``/feedback high``, ``medium`` or ``normal``: how much the last answer counts."""
    from shammah.learning.examples import WEIGHTS

    if context.argument not in WEIGHTS:
        words = ", ".join(WEIGHTS)
        given = f", not {context.argument!r:.40}" if context.argument else ""
        raise UsageError(f"/feedback takes {words}{given}.")
    verdict = _feedback(context)
    verdict.note(_needed(context), "weight", weight=context.argument)
    known = context.conversation.turns[-1].label in (Label.GOOD, Label.EDIT)
    when = "." if known else " once you rate it with /good or /fix."
    context.screen.hint(f"This answer counts {WEIGHTS[context.argument]:g}-fold{when}")


def accept(context: Context, old: Turn, better: str, *, private: bool = False) -> None:
    """``better`` was taken instead of the answer of ``old`` (after ``/redo cloud``)."""
    turn = judged(context.conversation, old, before=context.conversation.turns[:-1])
    if not _is_grave(context, turn):
        _feedback(context).note(turn, "accepted", better=better, private=private)


def last_turn(context: Context) -> JudgedTurn | None:
    """Return the last answer with all that the model had been sent; ``None`` if there is none, or
    somebody was in danger: that is not written down."""
    turns = context.conversation.turns
    if not turns or not turns[-1].answer:
        return None
    turn = judged(context.conversation, turns[-1], before=turns[:-1])
    return None if _is_grave(context, turn) else turn


def judged(conversation: Conversation, turn: Turn, before: list[Turn]) -> JudgedTurn:
    """``turn``, which came after ``before``."""
    from shammah.learning.feedback import JudgedTurn

    told = Conversation(conversation.system, before, conversation.system_private)
    by = turn.provenance
    return JudgedTurn(
        messages=told.with_question(turn.question, private=turn.private),
        answer=turn.given or turn.answer,
        role=by.role if by else "",
        model=by.model if by else "",
        adapter=by.adapter if by else "",
        private=turn.private,
    )


def _needed(context: Context) -> JudgedTurn:
    turn = last_turn(context)
    if turn is None:
        raise UsageError("There is no answer to rate yet.")
    return turn


def _is_grave(context: Context, turn: JudgedTurn) -> bool:
    return context.session.routing.examine(turn.messages).danger is not None


def _feedback(context: Context) -> Feedback:
    from shammah.learning.feedback import Feedback

    return Feedback(context.session.settings.home)
