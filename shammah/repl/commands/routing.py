"""Commands that choose the backend or ask again: /why, /redo, /edit, /local, /cloud."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from shammah.chat.conversation import Turn
from shammah.chat.summary import describe_turn
from shammah.errors import ShammahError, UsageError
from shammah.privacy import split_prefix
from shammah.privacy.gate import NEVER, Gate
from shammah.repl.commands import feedback
from shammah.router.decision import NO_KEY, Override, Reason, Target
from shammah.router.statistics import QUESTION, Label, Verdict, labels, parse_verdict
from shammah.terminal.text import printable

if TYPE_CHECKING:
    from shammah.repl.loop import Repl

SHOWN_OVERRIDE = 4000
"""Characters of a line that is being typed that are looked at, ten times a second: 1 ms."""
SHOWN_QUESTION = 60
"""Characters of a question that are repeated."""


def read_override(typed: str, override: Override, gate: Gate) -> Override:
    """What a line asks for that is being typed, where ``override`` holds for every question."""
    for target in (Target.LOCAL, Target.CLOUD):
        command = f"/{target} "
        if typed.startswith(command):
            typed, override = typed.removeprefix(command), replace(override, target=target)
    question, private = split_prefix(typed[:SHOWN_OVERRIDE])
    return replace(
        override, private=gate.judge(question, private=private or override.private).private
    )


def why(repl: Repl, argument: str) -> None:
    """``/why [N]``: the decision behind the last answer, or behind that of question N."""
    turns = repl.conversation.turns
    if not turns:
        raise UsageError("There is no question yet.")
    number = len(turns)
    if argument:
        try:
            number = int(argument)
        except ValueError:
            number = 0
        if not 1 <= number <= len(turns):
            asked = f"There {'is' if len(turns) == 1 else 'are'} {len(turns)} so far."
            raise UsageError(f"There is no question {argument!r:.20}.", asked)
    turn = turns[number - 1]
    question = " ".join(printable(turn.question).split())
    if len(question) > SHOWN_QUESTION:
        question = question[: SHOWN_QUESTION - 1] + "…"
    repl.screen.hint(f"Question {number}: {question}")
    repl.screen.line(describe_turn(turn))
    if turn.private:
        repl.screen.line(f"Private, because {_why_private(repl, turn)}.")


def local(repl: Repl, argument: str) -> None:
    """``/local on``, ``/local off``, ``/local QUESTION``."""
    if argument in ("", "on", "off"):
        if argument == "off":
            _check_cloud(repl)
        if argument:
            repl.override = Override(
                Target.LOCAL if argument == "on" else None, repl.override.private
            )
        if repl.override.target is Target.LOCAL:
            repl.screen.hint("The local model answers everything until /local off.")
        else:
            repl.screen.hint("Each question goes where the router decides; /why shows where.")
        return
    question, private = split_prefix(argument)
    repl.ask(question, private, Override(Target.LOCAL, repl.override.private))


def cloud(repl: Repl, argument: str) -> None:
    """``/cloud QUESTION``."""
    if not argument:
        raise UsageError("Write the question after /cloud.")
    _check_cloud(repl)
    _check_key(repl)
    question, private = split_prefix(argument)
    repl.ask(question, private, Override(Target.CLOUD, repl.override.private))


def redo(repl: Repl, argument: str) -> None:
    """``/redo``, ``/redo local``, ``/redo cloud``, ``/redo SERVER``: the last question once more.

    The new answer takes the place of the old one, if it becomes a whole one.
    """
    conversation, screen = repl.conversation, repl.screen
    if not conversation.turns:
        raise UsageError("There is no question yet.")
    old = conversation.turns[-1]
    target, server = _backend(argument, old, repl.session.settings.beside)
    if target is Target.CLOUD:
        try:
            _check_cloud(repl)
            _check_key(repl)
            _check_private(repl, old)
        except ShammahError as error:
            if argument:
                raise
            screen.hint(f"{error.message} Asking the local model again.")
            target = Target.LOCAL
    if old.answer:
        screen.hint(f"1: {_name(old)}")
        screen.answer(printable(old.answer))
        screen.hint("2:")
    new = _ask_instead(repl, old, Override(target, old.private, server=server))
    if not old.answer:
        repl.history.undo(old)
        return
    if not new.whole or not new.answer:
        conversation.turns[-1] = old
        repl.history.undo(new)
        screen.hint("Keeping the first answer.")
        return
    repl.history.undo(old)
    if old.whole and not old.corrected:  # what became of any other is known already
        _compare(repl, old, new)


def edit(repl: Repl, _: str) -> None:
    """``/edit``: the last question in the person's editor; what becomes of it takes the place of
    the turn, if anything is answered."""
    conversation, screen = repl.conversation, repl.screen
    if not conversation.turns:
        raise UsageError("There is no question to edit yet.")
    from shammah.terminal.external_editor import edit_text

    old = conversation.turns[-1]
    text, private = split_prefix(edit_text(old.question).rstrip())
    if not text or text == old.question:
        screen.hint("Nothing was changed, so nothing was sent.")
        return
    if repl.session.routing.label(Label.EDIT, old.outcome):
        conversation.label(Label.EDIT, old.outcome)
        old = conversation.turns[-1]
    screen.line(f"> {printable(text)}")
    edited = replace(old, question=text, private=old.private or private)
    new = _ask_instead(repl, edited, repl.override, old)
    if not new.answer:
        conversation.turns[-1] = old
        repl.history.undo(new)
        screen.hint("Keeping the first question.")
    else:
        repl.history.undo(old)


def _ask_instead(repl: Repl, asked: Turn, override: Override, old: Turn | None = None) -> Turn:
    """Ask what ``asked`` asks in the place of the last turn, ``old`` if that is another; the new
    turn."""
    turns = repl.conversation.turns
    place = len(turns) - 1
    turns.pop()
    try:
        repl.ask(asked.question, asked.private, override, again=True)
    except BaseException:  # Ctrl-C twice, or the terminal is gone: what was there stays
        if len(turns) > place:
            repl.history.undo(turns[-1])
        turns[place:] = [old or asked]
        raise
    return turns[-1]


def _compare(repl: Repl, old: Turn, new: Turn) -> None:
    verdict = _inquire(repl)
    said = labels(verdict, old.label)
    for turn, label in zip((old, new), said, strict=True):
        if label is not None and repl.session.routing.label(label, turn.outcome):
            repl.conversation.label(label, turn.outcome)
    if verdict in (Verdict.FIRST, Verdict.SECOND):
        better, worse = (old, new) if verdict is Verdict.FIRST else (new, old)
        if (_role(worse), _role(better)) == ("inference", "cloud"):
            feedback.accept(repl, worse, better.answer, private=better.private)


def _inquire(repl: Repl) -> Verdict:
    """What the person says. Anything else, as the next question, is not lost without a word."""
    while True:
        said = repl.inquire(QUESTION)
        verdict = parse_verdict(said)
        if verdict is not Verdict.SKIP or not (said or "").strip():
            return verdict
        repl.screen.hint("Type 1, 2 or s, or press Enter to skip.")


def _role(turn: Turn) -> str:
    return turn.provenance.role if turn.provenance is not None else ""


def _backend(argument: str, old: Turn, servers: Collection[str]) -> tuple[Target, str]:
    """Who is asked, and the name of the server if one is."""
    if argument in servers:
        return Target.SERVER, argument
    if argument:
        if argument not in ("local", "cloud"):
            known = ", ".join([*servers, "local"])
            raise UsageError(f"/redo takes {known} or cloud, not {argument!r:.40}.")
        return Target(argument), ""
    if old.provenance is None and old.decision is None:
        raise UsageError("Nobody was asked.", "To choose: /redo local or /redo cloud.")
    local = old.decision is not None and old.decision.target is Target.LOCAL
    if old.provenance is not None:
        local = _role(old) == "inference"
    return (Target.CLOUD if local else Target.LOCAL), ""


def _name(turn: Turn) -> str:
    if turn.corrected:
        return "your own"
    if (by := turn.provenance) is not None:
        roles = {"inference": Target.LOCAL, "servers": Target.SERVER}
        return f"{roles.get(by.role, Target.CLOUD)}: {by.model}"
    return "cut short"


def _check_cloud(repl: Repl) -> None:
    """This prompt has a cloud, or never had a key (then the router has the words for it)."""
    session = repl.session
    if session.cloud is None and session.settings.cloud_configured and not session.gate.never:
        raise ShammahError(
            "cloud_not_here",
            "This prompt was started for the local model only.",
            f"To ask {session.settings.cloud_name} as well, start `shammah` without --local.",
        )


def _check_key(repl: Repl) -> None:
    """The cloud may be asked, and can be."""
    session = repl.session
    refusal = NEVER if session.gate.never else NO_KEY
    if session.gate.never or not session.settings.cloud_configured:
        raise ShammahError(refusal.code, refusal.message, refusal.hint)


def _check_private(repl: Repl, turn: Turn) -> None:
    """Nothing private is asked of the cloud; here it is said why, the gate itself is behind."""
    if because := _why_private(repl, turn):
        raise ShammahError(
            "private",
            f"Not sent. This turn is private, because {because}.",
            "To ask the local model again: /redo local.",
        )


def _why_private(repl: Repl, turn: Turn) -> str:
    """What makes ``turn`` private, with the name of the rule if one does; empty: it is not."""
    gate = repl.session.gate
    if not gate.judge(turn.question, private=turn.private).private:
        return ""
    decision = turn.decision
    if because := gate.rules.mark(turn.question).why:
        return because
    if gate.private:
        return "/private is on"
    if decision is None or decision.reason is Reason.PRIVATE:
        return "you said so"
    if because := gate.rules.mark(turn.answer).why:
        return f"a rule applies to its answer: {because}"
    return "its answer may repeat what was private before"
