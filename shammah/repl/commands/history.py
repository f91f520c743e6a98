"""The slash commands of the history, and the conversation with which the prompt begins."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shammah.chat.conversation import new_key
from shammah.chat.options import parse_resume
from shammah.errors import ShammahError
from shammah.history import listing
from shammah.history.record import StoredConversation, title_of
from shammah.history.resuming import read_conversation, resume_conversation
from shammah.terminal.text import printable

if TYPE_CHECKING:
    from shammah.repl.loop import Repl

LISTED = 10
"""Conversations or turns that ``/history`` shows."""


def begin(repl: Repl, number: int, system: str | None) -> None:
    """Go on with conversation ``number`` (0: the newest), or say why not.

    ``system``: the system prompt that was asked for; ``None``: the conversation's own.
    """
    try:
        _resume(repl, number, system)
    except ShammahError as error:
        repl.screen.error(error.message, error.hint)
        repl.screen.hint("Started a new conversation.")


def history(repl: Repl, argument: str) -> None:
    """``/history [WORDS]``."""
    screen, words = repl.screen, argument
    if words:
        hits = repl.history.read(lambda store: store.search(words, LISTED))
        for hit in hits:
            screen.line(listing.describe_hit(hit, screen.emphasized))
        if not hits:
            screen.hint("Nothing was found.")
            return
    else:
        summaries = repl.history.read(lambda store: store.summaries(LISTED))
        for summary in summaries:
            screen.line(listing.describe_summary(summary, screen.columns))
        there = repl.history.read(lambda store: store.count())
        all_of_them = "`shammah history list -n 0` shows all."
        if more := listing.describe_more(len(summaries), there, all_of_them):
            screen.hint(more)
    if not repl.history.enabled:
        screen.hint("The history is off: this conversation is not stored.")
    screen.hint("To continue one: /resume NUMBER. To search: /history WORDS.")


def resume(repl: Repl, argument: str) -> None:
    """``/resume NUMBER``; without a number: what there is."""
    if not argument:
        history(repl, "")
        return
    number = parse_resume(argument, newest=False)
    assert number is not None
    _resume(repl, number, None)


def _resume(repl: Repl, number: int, system: str | None) -> None:
    stored = read_conversation(repl.history, number)
    resume_conversation(stored, repl.conversation, repl.session.gate, system)
    repl.history.resume(stored)
    _show(repl, stored, f"Continuing conversation {stored.number}")


def _show(repl: Repl, stored: StoredConversation, what: str) -> None:
    columns, rows = repl.screen.size
    for line in listing.recap(stored, columns, rows):
        repl.screen.hint(line)
    repl.screen.hint(listing.describe_resumed(stored, what))


def undo(repl: Repl, _: str) -> None:
    """``/undo``."""
    turns = repl.conversation.turns
    if not turns:
        repl.screen.hint("There is no turn to undo.")
        return
    turn = turns.pop()
    repl.history.undo(turn)
    repl.screen.hint(f"Undone: {printable(title_of(turn.question))}")


def save(repl: Repl, argument: str) -> None:
    """``/save [FILE]``; ``/save! FILE`` overwrites."""
    from shammah.history import export

    overwrite = argument.startswith("!")
    named = argument.removeprefix("!").strip()
    talk = repl.conversation
    if not talk.turns:
        repl.screen.hint("Nothing to save yet.")
        return
    turns = tuple(talk.turns)
    stored = StoredConversation(0, talk.system, talk.system_private, turns[0].at, turns)
    path = Path(os.path.expanduser(named or time.strftime("shammah-%Y-%m-%d-%H%M%S.md")))
    form = export.form_of(path)
    try:
        export.write_file(path, [export.write(stored, form)], overwrite=overwrite)
    except ShammahError as error:
        if error.code != "file_exists":
            raise
        repl.screen.error(error.message, f"To overwrite it: /save! {named}.")
        return
    private = sum(turn.private for turn in turns)
    note = f"; {listing.describe_turns(private)} of it private" if private else ""
    repl.screen.hint(f"Saved {listing.describe_turns(len(turns))} in {path}{note}.")


def load(repl: Repl, argument: str) -> None:
    """``/load FILE``. What cannot be loaded changes nothing."""
    from shammah.history import export

    path = Path(os.path.expanduser(argument))
    stored = export.read(export.read_file(path), new_key)
    sources = (os.path.abspath(path), os.path.realpath(path))
    if repl.session.gate.rules.mark("", sources).private:
        turns = tuple(replace(turn, private=True) for turn in stored.turns)
        stored = replace(stored, turns=turns, system_private=True)
    resume_conversation(stored, repl.conversation, repl.session.gate, None)
    repl.history.resume(stored)
    _show(repl, stored, "Continuing the saved conversation")
