"""Options that several commands share."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
from click.shell_completion import CompletionItem

from shammah.chat.prompt_options import OPTIONS
from shammah.errors import ShammahError
from shammah.models.licences import LICENCES
from shammah.settings.thinking import THINK
from shammah.terminal.output import describe_error, print_json

if TYPE_CHECKING:
    from shammah.settings.model import Settings

HELP = {"help_option_names": ["-h", "--help"]}
EXAMPLES = "\n\nExamples:\n"

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")


class Command(click.Command):
    """A command whose docstring ends with examples; help shows them below the options."""

    def __init__(self, name: str | None, **attributes: Any) -> None:
        super().__init__(name, **_with_examples(attributes))


class Group(click.Group):
    """A group like `Command`, with commands of that class."""

    command_class = Command

    def __init__(self, name: str | None, **attributes: Any) -> None:
        super().__init__(name, **_with_examples(attributes))


def _with_examples(attributes: dict[str, Any]) -> dict[str, Any]:
    words, mark, examples = inspect.cleandoc(attributes["help"]).partition(EXAMPLES)
    epilog = f"\b{mark[1:]}{examples}" if mark else attributes.get("epilog")
    return {**attributes, "help": words, "epilog": epilog}


def json_flag(words: str) -> Callable[[F], F]:
    """Declare ``--json`` for a command that reports failures in its own objects."""
    return click.option("--json", "as_json", is_flag=True, help=words)


def json_option(words: str, **empty: str) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Declare ``--json``, the command's ``as_json``.

    A failure is then printed as an object, too (with ``empty``, its other fields), so that programs
    always read JSON.
    """

    def declare(command: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(command)
        def run(*arguments: P.args, **options: P.kwargs) -> int:
            try:
                return command(*arguments, **options)
            except ShammahError as error:
                if options["as_json"]:
                    print_json({"error": describe_error(error), **empty})
                raise

        return json_flag(words)(run)

    return declare


def complete_model(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete names of models: what can be chosen, and what is in the cache."""
    from shammah.models.catalogue import model_names

    names = model_names(os.environ)
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    if incomplete.startswith((".", "/", "~")):
        found.append(CompletionItem(incomplete, type="dir"))
    return found


def declare(name: str) -> tuple[list[str], dict[str, Any]]:
    """Return how click declares the prompt's option ``name``."""
    spellings, value, words = next(option for option in OPTIONS if option[0][0] == name)
    more: dict[str, Any] = {"metavar": value} if value else {"is_flag": True}
    if name == "--model":
        more["shell_complete"] = complete_model
    elif name in ("--licence", "--think"):
        more = {"type": click.Choice(LICENCES if name == "--licence" else THINK)}
    else:
        words = f"{words[0].upper()}{words[1:]}"
    return list(spellings), more | {"help": f"{words}."}


def prompt_options(command: F) -> F:
    """Declare all options of the prompt."""
    for spellings, _, _ in reversed(OPTIONS):
        names, attributes = declare(spellings[0])
        command = click.option(*names, **attributes)(command)
    return command


def _alone(name: str) -> Callable[[F], F]:
    names, attributes = declare(name)
    return click.option(*names, **attributes)


model_option = _alone("--model")
licence_option = _alone("--licence")


def load_checked_settings(model: str | None = None, licence: str | None = None) -> Settings:
    """Load the settings in force, and check that the model has a valid name.

    Raises:
        ShammahError: ``config_invalid``, ``model_unknown``.
    """
    from shammah.models.catalogue import check_model_name
    from shammah.settings.load import load_settings

    settings = load_settings(os.environ, model, licence)
    check_model_name(settings.model)
    return settings
