"""Slash commands."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from shammah.errors import ShammahError, UsageError
from shammah.history.listing import describe_turns
from shammah.learning.adapter_choice import choose_adapter
from shammah.privacy import PREFIX, split_word
from shammah.repl.commands import feedback, history, routing
from shammah.repl.toolbar import describe_spending
from shammah.router.route import AUTO, OFF
from shammah.settings.model import Settings
from shammah.terminal.output import echo
from shammah.terminal.text import fold, printable
from shammah.terminal.wording import describe_state

if TYPE_CHECKING:
    from shammah.repl.loop import Repl

HANGING = " " * 16
"""Where the description of a command goes on in ``/help``."""


def run(line: str, repl: Repl) -> None:
    """Run ``/name ...``.

    Raises:
        EOFError: the command exits the program.
    """
    name, argument = split_word(line[1:].strip() or "help")
    if name.endswith("!"):
        name, argument = name[:-1], f"! {argument}"
    try:
        command = COMMANDS.get(ALIASES.get(name, name))
        if command is None:
            raise _unknown(name)
        command[1](repl, argument.rstrip())
    except ShammahError as error:
        repl.screen.error(error.message, error.hint)


def _unknown(name: str) -> ShammahError:
    import difflib

    near = difflib.get_close_matches(name.lower(), COMMANDS, n=1)
    hint = f"Did you mean /{near[0]}?" if near else "/help lists the commands."
    return UsageError(f"There is no command /{printable(name):.40}.", hint)


def descriptions() -> dict[str, str]:
    """Return each command and what it does."""
    return {name: words for name, (words, _) in COMMANDS.items()}


def _help(repl: Repl, argument: str) -> None:
    screen = repl.screen
    if name := argument.removeprefix("/"):
        name = ALIASES.get(name, name)
        if name not in COMMANDS:
            raise _unknown(name)
        screen.line(describe_command(f"/{name}", COMMANDS[name][0], screen.columns))
        return
    for title, group in GROUPS.items():
        known = {f"/{name}": words for name, (words, _) in group.items()}
        for line in describe_help(title, known, screen.columns):
            screen.line(line)
    for line in describe_help("In a line", LINES, screen.columns):
        screen.line(line)
    screen.hint("Tab completes, Ctrl-R searches, Ctrl-C cancels an answer, Ctrl-D exits.")


def describe_help(title: str, entries: Mapping[str, str], columns: int) -> Iterator[str]:
    """Yield the lines of a group. ``entries``: name to description."""
    yield f"{title}:"
    for name, words in entries.items():
        yield describe_command(name, words, columns)


def describe_command(name: str, words: str, columns: int) -> str:
    """Return the line of one command."""
    return fold(f"  {name:12}  {words}", max(30, min(columns - 1, 100)), HANGING)


def _status(repl: Repl, _: str) -> None:
    view = repl.session.view()
    local = "Not loaded" if repl.session.local.resting else describe_state(view.local)
    repl.screen.line(f"local  {local}")
    cloud = describe_state(view.cloud) if view.cloud_configured else "No API key is set"
    if repl.session.gate.never:
        cloud = "Switched off (cloud.use is never)"
    for server in view.servers:
        repl.screen.line(f"{server.name}  {server.why or f'Ready: {server.model}'}")
    repl.screen.line(f"cloud  {cloud}")
    if spent := describe_spending(repl.spending):
        repl.screen.line(f"so far {spent}")


def _model(repl: Repl, argument: str) -> None:
    session = repl.session
    force = argument.startswith("!")
    wanted = argument.removeprefix("!").strip()
    if not wanted:
        repl.screen.line(f"{session.settings.model}: {describe_state(session.view().local)}")
        repl.screen.hint("To switch: /model NAME (auto, starter, a size, a Hub id or a path).")
        return
    repl.screen.live(f"looking up {printable(wanted)} ...")
    try:
        said = repl.switch.begin(wanted, force=force)
    finally:
        repl.screen.end_live()
    repl.screen.hint(printable(said))


def _adapter(repl: Repl, argument: str) -> None:
    from shammah.learning.adapters import AdapterStore

    conversation, screen = repl.conversation, repl.screen
    store = AdapterStore(repl.session.settings.home)
    state = repl.session.view().local
    requested = argument
    if requested:
        conversation.adapter = requested if requested in (AUTO, OFF) else store.get(requested).name
    if conversation.adapter == OFF:
        screen.hint("This conversation uses no adapter.")
    elif conversation.adapter != AUTO:
        screen.hint(f"This conversation uses {conversation.adapter}.")
    elif serving := choose_adapter(store.directory.parent, AUTO, state):
        screen.hint(f"The active adapter answers: {serving}.")
    else:
        screen.hint("No adapter is active.")
    if not requested:
        screen.hint(f"/adapter NAME, /adapter off, /adapter auto. {store.known()}")


def _load(repl: Repl, argument: str) -> None:
    if argument:
        history.load(repl, argument)
        return
    repl.session.load()
    repl.screen.line(describe_state(repl.session.view().local))


def _unload(repl: Repl, _: str) -> None:
    repl.screen.hint(repl.session.unload())


def _join(repl: Repl, _: str) -> None:
    link = repl.session.local
    if link.in_use_by_others is None:
        repl.screen.hint("Nothing to join: you already use the local model.")
        return
    link.join(link.in_use_by_others)
    repl.screen.hint(f"Joining {link.spec.identity.model}.")


def _takeover(repl: Repl, _: str) -> None:
    link = repl.session.local
    if link.in_use_by_others is None:
        repl.screen.hint("Nothing to take over: you already use the local model.")
        return
    repl.screen.hint("Unloading the other model; the terminals that use it are notified.")
    link.take_over()


def _private(repl: Repl, argument: str) -> None:
    gate, screen = repl.session.gate, repl.screen
    if argument not in ("", "on", "off"):
        screen.error(f"/private takes on or off, not {argument!r:.40}.")
        return
    if argument:
        gate.private = argument == "on"
    if gate.private:
        screen.hint("Questions are private: they and their answers stay on this machine.")
    else:
        screen.hint(f"Questions are private if a rule applies or they start with {PREFIX}.")
    if turns := repl.conversation.private_turns:
        screen.hint(f"{describe_turns(turns)} so far will never go to the cloud.")


def _clear(repl: Repl, _: str) -> None:
    repl.conversation.clear()
    repl.history.leave()
    repl.questions.forget()
    repl.screen.hint("Started a new conversation.")


def _models(repl: Repl, _: str) -> None:
    from shammah.models.machine import look
    from shammah.supervision import model_list

    settings = repl.session.settings
    default = model_list.default_model(settings, look(os.environ))
    found, others = model_list.cached_models(settings), model_list.files_elsewhere()
    for line in model_list.describe_models(found, others, settings.model, default):
        echo(line)
    repl.screen.hint("To switch to one of them, or download another: /model NAME.")


def _system(repl: Repl, argument: str) -> None:
    conversation, screen, text = repl.conversation, repl.screen, argument
    if text:
        conversation.system = "" if text == "off" else text
        mark = repl.session.gate.rules.mark(conversation.system)
        conversation.system_private = mark.private
        if mark.why:
            screen.hint(f"Private, because {mark.why}. It stays on this machine.")
    screen.line(printable(conversation.system) or "There is no system prompt.")
    if not text:
        screen.hint("To set one for this conversation: /system TEXT. To remove it: /system off.")


def _raw(repl: Repl, argument: str) -> None:
    screen = repl.screen
    if argument not in ("", "on", "off"):
        screen.error(f"/raw takes on or off, not {argument!r:.40}.")
        return
    screen.markdown = argument == "off" if argument else not screen.markdown
    if screen.markdown and not screen.styles:
        screen.hint("Answers stay plain text: this terminal shows no styles.")
    elif screen.markdown:
        screen.hint("Answers are shown as Markdown.")
    else:
        screen.hint("Answers are shown as plain text.")


_THINK = {
    "off": "The local model answers without thinking first, if it has the choice.",
    "on": "A model that can think does so before it answers. You see only how long.",
    "show": "A model that can think does so before it answers, and you see its thoughts.",
}


def _think(repl: Repl, argument: str) -> None:
    if argument and argument not in _THINK:
        repl.screen.error(f"/think takes off, on or show, not {argument!r:.40}.")
        return
    session = repl.session
    session.settings = session.settings.with_think(argument or None)
    repl.screen.hint(_THINK[session.settings.inference.think])


_SINCE = {
    "model": "--model or /model",
    "licence": "--licence",
    "inference.think": "--think or /think",
}
"""What else decides a setting of a prompt, besides its file and the environment."""


def _config(repl: Repl, _: str) -> None:
    from shammah.settings.report import changed_settings, explain_settings, written

    session, screen = repl.session, repl.screen
    settings = session.settings
    sources = {one.name: one for one in explain_settings(session.environ)}
    changed = list(changed_settings(settings, Settings(settings.home)))
    for name, value in changed:
        source = sources[name]
        whence = source.whence if source.value == value else _SINCE.get(name, "since the start")
        screen.line(printable(f"{written(name, value)}   ({whence})"))
    if not changed:
        screen.line("All settings are the defaults.")
    file = settings.home / "config.toml"
    if not file.exists():
        screen.hint(f"{file} does not exist yet. To create it: `shammah config set NAME VALUE`.")


def _cost(repl: Repl, _: str) -> None:
    repl.screen.line(describe_spending(repl.spending) or "Nothing was spent yet.")
    repl.screen.hint(
        "/why shows the cost of an answer; `shammah egress` lists all that was sent elsewhere."
    )


def _compact(repl: Repl, _: str) -> None:
    repl.screen.hint(
        "Nothing to do: when a conversation gets too long for the model, its oldest turns are left "
        "out, and the answer says so. /clear starts a new one, /undo removes the last turn."
    )


def _quit(repl: Repl, _: str) -> None:
    raise EOFError


ALIASES = {"exit": "quit", "bye": "quit", "q": "quit", "new": "clear", "reset": "clear"}
"""What other programs call them."""


LINES = {
    "@FILE": 'Attach a text file; @"with blanks"',
    "!COMMAND": "Run a command, if you agree, and attach its output",
    "!private ...": "Keep this question and its answer on this machine",
    '"""': "Begin and end a question of several lines; or press Alt-Enter in one",
}
"""What else a line may hold."""

GROUPS: dict[str, dict[str, tuple[str, Callable[[Repl, str], None]]]] = {
    "Answers": {
        "why": (
            "Show who gave the last answer, and why; /why 2: the second one",
            routing.why,
        ),
        "redo": ("Ask the last question again: /redo, /redo local, /redo cloud", routing.redo),
        "edit": ("Open the last question in your editor, and ask it again", routing.edit),
        "good": ("Rate the last answer as good", feedback.good),
        "bad": ("Rate it as bad: /bad, /bad NOTE", feedback.bad),
        "fix": (
            "Replace it: /fix BETTER ANSWER, or /fix to edit it",
            feedback.fix,
        ),
        "feedback": (
            "Set how much it counts when the model learns: /feedback high, medium, normal",
            feedback.feedback,
        ),
        "think": ("Let the model think first: /think on, /think show, /think off", _think),
        "undo": ("Remove the last turn from the conversation", history.undo),
        "raw": ("Switch between plain text and Markdown", _raw),
    },
    "Conversation": {
        "system": ("Show the system prompt, or set it: /system Answer in French.", _system),
        "clear": ("Start a new conversation", _clear),
        "save": (
            "Save this one: FILE.md to read, FILE.jsonl for /load; /save! overwrites",
            history.save,
        ),
        "load": ("Load the local model now; /load FILE: a saved conversation", _load),
        "history": ("List your conversations, or search them: /history WORDS", history.history),
        "resume": ("Continue a conversation: /resume NUMBER", history.resume),
        "compact": ("Explain what happens when a conversation gets too long", _compact),
    },
    "Who answers": {
        "private": ("Keep questions on this machine: /private on, /private off", _private),
        "local": (
            "Let the local model answer: /local on, /local off, /local QUESTION",
            routing.local,
        ),
        "cloud": ("Ask the cloud: /cloud QUESTION", routing.cloud),
        "model": ("Show the local model, or switch: /model 1.5B; /model! 7B forces it", _model),
        "models": ("List the models on this disk", _models),
        "adapter": ("Answer with an adapter, or without: /adapter NAME, off, auto", _adapter),
        "unload": ("Unload the local model to free its memory", _unload),
        "join": ("Use the model that another terminal has loaded", _join),
        "takeover": ("Unload another terminal's model, and load yours", _takeover),
    },
    "Program": {
        "help": ("List the commands, or explain one: /help redo", _help),
        "status": ("Show the state of the workers", _status),
        "cost": ("Show the tokens of this session, and what they cost", _cost),
        "config": ("Show the settings that are not the defaults", _config),
        "quit": ("Exit", _quit),
    },
}
"""The commands, in the order of ``/help``, each with what it does."""

COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}
