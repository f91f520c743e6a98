"""The commands that the local model learns from: /good, /bad, /fix, /feedback."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shammah.chat.conversation import Conversation, Turn
from shammah.errors import UsageError
from shammah.router.statistics import Label

if TYPE_CHECKING:
    from shammah.learning.feedback import Feedback, JudgedTurn
    from shammah.repl.loop import Repl

STORED = "Stored for `shammah train`."
LEFT_OUT = (
    "`shammah train` leaves it out: terms such as Anthropic's forbid training a model on another's "
    "answers. What you write with /fix is learnt. (train.from_cloud in docs/FINE_TUNING.md)"
)


def good(repl: Repl, _: str) -> None:
    """``/good``: the last answer is as it should be."""
    turns = repl.conversation.turns
    if turns and turns[-1].corrected:
        repl.screen.hint("That answer is your own, and already stored.")
        return
    _rate(repl, Label.GOOD)
    turn = last_turn(repl)
    if turn is not None:
        _feedback(repl).note(turn, "good")
        learnt = turn.source == "local" or repl.session.settings.train.from_cloud
        repl.screen.hint(STORED if learnt else LEFT_OUT)


def bad(repl: Repl, argument: str) -> None:
    """``/bad [NOTE]``: it is not. Nothing is learnt from that until /fix says what is right."""
    _rate(repl, Label.BAD)
    turn = last_turn(repl)
    if turn is not None:
        _feedback(repl).note(turn, "bad", why=argument)
        repl.screen.hint("To say what it should have been: /fix BETTER ANSWER.")


def _rate(repl: Repl, label: Label) -> None:
    if _label(repl, label):
        repl.screen.hint("Noted. This will count when you ask something similar.")
    else:
        repl.screen.hint("There is no answer to rate yet.")


def _label(repl: Repl, label: Label) -> bool:
    """Label the last answer in the statistics; return whether they know it."""
    turns = repl.conversation.turns
    outcome = turns[-1].outcome if turns else ""
    known = repl.session.routing.label(label, outcome)
    if known:
        repl.conversation.label(label, outcome)
    return known


def fix(repl: Repl, argument: str) -> None:
    """``/fix BETTER ANSWER``, or ``/fix`` and the person's editor: the conversation continues from
    that answer."""
    turn, screen, talk = _needed(repl), repl.screen, repl.conversation
    old = talk.turns[-1]
    better = argument or _edited(old.answer)
    if not better:
        screen.hint("Nothing was changed, so nothing was stored.")
        return
    mark = repl.session.gate.judge(better, private=old.private)
    _feedback(repl).note(turn, "fix", better=better, private=mark.private)
    if mark.why:
        screen.hint(f"Private, because {mark.why}. It stays on this machine.")
    repl.history.keep(talk.correct(better, private=mark.private), talk)
    repl.history.undo(old)
    screen.hint(f"{STORED} The conversation continues from your answer.")
    _label(repl, Label.EDIT)


def _edited(answer: str) -> str:
    """Return what the person makes of ``answer``; empty if it is the same."""
    from shammah.terminal.external_editor import edit_text

    better = edit_text(answer, "answer.md")
    return "" if better.strip() == answer.strip() else better.rstrip()


def feedback(repl: Repl, argument: str) -> None:
    """``/feedback high``, ``medium`` or ``normal``: how much the last answer counts."""
    from shammah.learning.examples import WEIGHTS

    if argument not in WEIGHTS:
        words = ", ".join(WEIGHTS)
        given = f", not {argument!r:.40}" if argument else ""
        raise UsageError(f"/feedback takes {words}{given}.")
    verdict = _feedback(repl)
    verdict.note(_needed(repl), "weight", weight=argument)
    known = repl.conversation.turns[-1].label in (Label.GOOD, Label.EDIT)
    when = "." if known else " once you rate it with /good or /fix."
    repl.screen.hint(f"This answer counts {WEIGHTS[argument]:g}-fold{when}")


def accept(repl: Repl, old: Turn, better: str, *, private: bool = False) -> None:
    """``better`` was taken instead of the answer of ``old`` (after ``/redo cloud``)."""
    turn = judged(repl.conversation, old, before=repl.conversation.turns[:-1])
    if not _is_grave(repl, turn):
        _feedback(repl).note(turn, "accepted", better=better, private=private)


def last_turn(repl: Repl) -> JudgedTurn | None:
    """Return the last answer with all that the model had been sent; ``None`` if there is none, or
    somebody was in danger: that is not written down."""
    turns = repl.conversation.turns
    if not turns or not turns[-1].answer:
        return None
    turn = judged(repl.conversation, turns[-1], before=turns[:-1])
    return None if _is_grave(repl, turn) else turn


def judged(conversation: Conversation, turn: Turn, before: list[Turn]) -> JudgedTurn:
    """``turn``, which came after ``before``."""
    from shammah.learning.feedback import LOCAL, JudgedTurn

    told = Conversation(conversation.system, before, conversation.system_private)
    by = turn.provenance
    target, _ = turn.route
    return JudgedTurn(
        messages=told.with_question(turn.question, private=turn.private),
        answer=turn.given or turn.answer,
        role=by.role if by else LOCAL if target == "local" else "",
        model=by.model if by else "",
        adapter=by.adapter if by else "",
        private=turn.private,
        foreign=turn.foreign,
    )


def _needed(repl: Repl) -> JudgedTurn:
    turn = last_turn(repl)
    if turn is None:
        raise UsageError("There is no answer to rate yet.")
    return turn


def _is_grave(repl: Repl, turn: JudgedTurn) -> bool:
    return repl.session.routing.examine(turn.messages).danger is not None


def _feedback(repl: Repl) -> Feedback:
    from shammah.learning.feedback import Feedback

    return Feedback(repl.session.settings.home)
