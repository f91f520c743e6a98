"""The slash commands of the history, and the conversation with which the prompt begins."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shammah.chat.options import parse_resume
from shammah.chat.turn import new_key
from shammah.errors import ShammahError
from shammah.history import listing
from shammah.history.record import StoredConversation, title_of
from shammah.history.resuming import read_conversation, resume_conversation
from shammah.terminal.wording import printable

if TYPE_CHECKING:
    from shammah.repl.commands.table import Context

LISTED = 10
"""Conversations or turns that ``/history`` shows."""


def begin(context: Context, number: int, system: str | None) -> None:
    """Go on with conversation ``number`` (0: the newest), or say why not.

    ``system``: the system prompt that was asked for; ``None``: the conversation's own.
    """
    try:
        _resume(context, number, system)
    except ShammahError as error:
        context.screen.error(error.message, error.hint)
        context.screen.hint("Started a new conversation.")


def history(context: Context) -> None:
    """``/history [WORDS]``."""
    screen, words = context.screen, context.argument
    if words:
        hits = context.history.read(lambda store: store.search(words, LISTED))
        for hit in hits:
            screen.line(listing.describe_hit(hit, screen.emphasized))
        if not hits:
            screen.hint("Nothing was found.")
            return
    else:
        summaries = context.history.read(lambda store: store.summaries(LISTED))
        for summary in summaries:
            screen.line(listing.describe_summary(summary, screen.columns))
        there = context.history.read(lambda store: store.count())
        all_of_them = "`shammah history list -n 0` shows all."
        if more := listing.describe_more(len(summaries), there, all_of_them):
            screen.hint(more)
    if not context.history.enabled:
        screen.hint("The history is off: this conversation is not stored.")
    screen.hint("To continue one: /resume NUMBER. To search: /history WORDS.")


def resume(context: Context) -> None:
    """``/resume NUMBER``; without a number: what there is."""
    if not context.argument:
        history(context)
        return
    number = parse_resume(context.argument, newest=False)
    assert number is not None
    _resume(context, number, None)


def _resume(context: Context, number: int, system: str | None) -> None:
    kept = read_conversation(context.history, number)
    resume_conversation(kept, context.conversation, context.session.gate, system)
    context.history.resume(kept)
    _show(context, kept, f"Continuing conversation {kept.number}")


def _show(context: Context, kept: StoredConversation, what: str) -> None:
    columns, rows = context.screen.size
    for line in listing.recap(kept, columns, rows):
        context.screen.hint(line)
    context.screen.hint(listing.describe_resumed(kept, what))


def undo(context: Context) -> None:
    """``/undo``."""
    turns = context.conversation.turns
    if not turns:
        context.screen.hint("There is no turn to undo.")
        return
    turn = turns.pop()
    context.history.undo(turn)
    context.screen.hint(f"Undone: {printable(title_of(turn.question))}")


def save(context: Context) -> None:
    """``/save [FILE]``; ``/save! FILE`` overwrites."""
    from shammah.history import export

    overwrite = context.argument.startswith("!")
    named = context.argument.removeprefix("!").strip()
    talk = context.conversation
    if not talk.turns:
        context.screen.hint("Nothing to save yet.")
        return
    turns = tuple(talk.turns)
    kept = StoredConversation(0, talk.system, talk.system_private, turns[0].at, turns)
    path = Path(os.path.expanduser(named or time.strftime("shammah-%Y-%m-%d-%H%M%S.md")))
    form = export.form_of(path)
    try:
        export.write_file(path, [export.write(kept, form)], overwrite=overwrite)
    except ShammahError as error:
        if error.code != "file_exists":
            raise
        context.screen.error(error.message, f"To overwrite it: /save! {named}.")
        return
    private = sum(turn.private for turn in turns)
    note = f"; {listing.describe_turns(private)} of it private" if private else ""
    context.screen.hint(f"Saved {listing.describe_turns(len(turns))} in {path}{note}.")


def load(context: Context) -> None:
    """``/load FILE``. What cannot be loaded changes nothing."""
    from shammah.history import export

    path = Path(os.path.expanduser(context.argument))
    kept = export.read(export.read_file(path), new_key)
    sources = (os.path.abspath(path), os.path.realpath(path))
    if context.session.gate.rules.mark("", sources).private:
        turns = tuple(replace(turn, private=True) for turn in kept.turns)
        kept = replace(kept, turns=turns, system_private=True)
    resume_conversation(kept, context.conversation, context.session.gate, None)
    context.history.adopt(kept)
    _show(context, kept, "Continuing the saved conversation")
