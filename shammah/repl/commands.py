"""Slash commands."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from shammah.config import load_settings
from shammah.conversation import Conversation
from shammah.errors import ShammahError
from shammah.models import check_model_name
from shammah.repl.screen import Screen
from shammah.session import Session
from shammah.wording import describe_state


@dataclass(frozen=True, slots=True)
class Context:
    """What a command may touch."""

    conversation: Conversation
    session: Session
    screen: Screen
    argument: str = ""


def run(line: str, conversation: Conversation, session: Session, screen: Screen) -> None:
    """Run ``/name ...``.

    Raises:
        EOFError: the command leaves the program.
    """
    name, _, argument = (line[1:].strip() or "help").partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        import difflib  # only for the error's hint

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean /{near[0]}?" if near else "/help lists the commands."
        screen.error(f"There is no command /{name}.", hint)
        return
    try:
        command[1](Context(conversation, session, screen, argument.strip()))
    except ShammahError as error:
        screen.error(error.message, error.hint)


def _help(context: Context) -> None:
    for name, (words, _) in COMMANDS.items():
        context.screen.line(f"/{name:8} {words}")
    context.screen.hint("Ctrl-C cancels an answer, Ctrl-D leaves.")


def _status(context: Context) -> None:
    view = context.session.view()
    context.screen.line(f"local  {describe_state(view.local)}")
    cloud = describe_state(view.cloud) if view.cloud_configured else "No API key is set"
    context.screen.line(f"cloud  {cloud}")


def _model(context: Context) -> None:
    session = context.session
    if not context.argument:
        context.screen.line(f"{session.settings.model}: {describe_state(session.view().local)}")
        context.screen.hint("/model NAME takes another: auto, starter, a size, a Hub id, a path.")
        return
    model = load_settings(os.environ, context.argument).model
    check_model_name(model)
    session.use_model(model)
    context.screen.hint(f"Taking {model}; the conversation goes on with it.")


def _load(context: Context) -> None:
    context.session.local.start()
    context.screen.line(describe_state(context.session.view().local))


def _unload(context: Context) -> None:
    context.screen.hint(context.session.unload())


def _join(context: Context) -> None:
    link = context.session.local
    if link.in_use_by_others is None:
        context.screen.hint("There is nothing to join: the local model is yours to use.")
        return
    link.join(link.in_use_by_others)
    context.screen.hint(f"Joining {link.spec.identity.model}.")


def _takeover(context: Context) -> None:
    link = context.session.local
    if link.in_use_by_others is None:
        context.screen.hint("There is nothing to take over: the local model is yours to use.")
        return
    context.screen.hint("Ending the other model's worker; its users will be told.")
    link.take_over()


def _clear(context: Context) -> None:
    context.conversation.clear()
    context.screen.hint("The conversation begins anew.")


def _quit(context: Context) -> None:
    raise EOFError


COMMANDS: dict[str, tuple[str, Callable[[Context], None]]] = {
    "help": ("lists the commands", _help),
    "status": ("tells how the workers are", _status),
    "model": ("shows the local model, or takes another: /model 1.5B", _model),
    "load": ("loads the local model now", _load),
    "unload": ("ends it, and has its memory back", _unload),
    "join": ("uses the model that another terminal has loaded", _join),
    "takeover": ("ends that model and loads yours", _takeover),
    "clear": ("begins a new conversation", _clear),
    "quit": ("leaves", _quit),
}
