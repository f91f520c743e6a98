"""Slash commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shammah.conversation import Conversation
from shammah.errors import ShammahError
from shammah.repl.screen import Screen
from shammah.session import Session
from shammah.wording import describe_state


@dataclass(frozen=True, slots=True)
class Context:
    """What a command may touch."""

    conversation: Conversation
    session: Session
    screen: Screen


def run(line: str, conversation: Conversation, session: Session, screen: Screen) -> None:
    """Run ``/name ...``.

    Raises:
        EOFError: the command leaves the program.
    """
    name = line[1:].split(maxsplit=1)[0] if line[1:].strip() else "help"
    command = COMMANDS.get(name)
    if command is None:
        import difflib  # only for the error's hint

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean /{near[0]}?" if near else "/help lists the commands."
        screen.error(f"There is no command /{name}.", hint)
        return
    try:
        command[1](Context(conversation, session, screen))
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
    "join": ("uses the model that another terminal has loaded", _join),
    "takeover": ("ends that model and loads yours", _takeover),
    "clear": ("begins a new conversation", _clear),
    "quit": ("leaves", _quit),
}
