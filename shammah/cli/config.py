"""``shammah config``: show the settings and their origins, and change them safely."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from shammah.cli.options import Group, json_option, licence_option, model_option
from shammah.errors import ExitCode, ShammahError, UsageError
from shammah.models.catalogue import check_model_name
from shammah.settings.edit import save, with_setting
from shammah.settings.load import (
    absolute_model,
    config_file,
    examine_text,
    parse_config,
    read_config,
)
from shammah.settings.model import (
    ENVIRONMENT,
    SERVERS,
    ServerSettings,
    Settings,
    is_secret,
    setting_names,
    value_of,
)
from shammah.settings.report import Value, explain_settings, shown, written
from shammah.terminal.confirm import confirm
from shammah.terminal.external_editor import edit_file
from shammah.terminal.output import describe_error, echo, print_json
from shammah.terminal.text import printable

NEW_FILE = "# Shammah's settings. `shammah config show` lists them all with their values.\n"


def complete_setting(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete names of settings."""
    names = [".".join(path) for path in setting_names()]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


name_argument = click.argument("name", shell_complete=complete_setting)


@click.group(cls=Group)
def config() -> None:
    """Show, check and change the settings.

    Later wins: defaults, config.toml, environment, command line.

    Examples:
      shammah config show --changed
      shammah config get cloud.use
      shammah config set cloud.use ask
      shammah config edit
      shammah config validate
    """


# --- looking ------------------------------------------------------------------------------


@config.command()
@click.option("--changed", is_flag=True, help="Only what differs from its default.")
@model_option
@licence_option
@json_option("For programs.")
def show(changed: bool, model: str | None, licence: str | None, as_json: bool) -> int:
    """Show every setting with its value and its origin.

    Examples:
      shammah config show                 every setting and its origin
      shammah config show --changed       only what you have set
      shammah config show --json | jq '.[] | select(.origin == "environment")'
    Keys are never shown.
    """
    values = explain_settings(os.environ, model, licence)
    if changed:
        values = [value for value in values if value.origin != "default"]
    if as_json:
        print_json([_document(value) for value in values])
        return ExitCode.OK
    lines = [(written(value.name, value.value), value.whence) for value in values]
    width = min(max((len(text) for text, _ in lines), default=0), 48)
    for text, whence in lines:
        echo(f"{text:{width}}  # {whence}")
    if not values:
        echo("All settings are at their defaults.")
    return ExitCode.OK


@config.command()
@name_argument
@json_option("For programs.")
def get(name: str, as_json: bool) -> int:
    """Print the value of one setting.

    Examples:
      shammah config get cloud.use
      shammah config get privacy.words         lists: one value per line
    """
    path = _known(name)
    value = next(one for one in explain_settings(os.environ) if one.name == ".".join(path))
    if as_json:
        print_json(_document(value))
    elif isinstance(value.value, tuple):
        for one in value.value:
            click.echo(printable(one))
    else:
        said = shown(value.name, value.value)
        click.echo(str(said).lower() if isinstance(said, bool) else printable(str(said)))
    return ExitCode.OK


def _document(value: Value) -> dict[str, Any]:
    return {
        "name": value.name,
        "value": shown(value.name, value.value),
        "origin": value.origin,
        "source": value.source,
        "line": value.line or None,
    }


@config.command()
@json_option("For programs.")
def validate(as_json: bool) -> int:
    """Report everything that is wrong with config.toml, with its line.

    Examples:
      shammah config validate
      shammah config validate --json | jq -r '.problems[].message'
    Exit status: 0 valid, 1 not valid.
    """
    file = config_file(os.environ)
    try:
        faults = find_faults(os.environ, read_config(file), file)
    except ShammahError as error:
        faults = [error]
    if as_json:
        told = [describe_error(fault) for fault in faults]
        print_json({"file": str(file), "ok": not faults, "problems": told})
    else:
        _report(faults)
        if not faults:
            there = "is valid" if file.exists() else "does not exist; all settings are defaults"
            echo(f"{file} {there}.")
    return ExitCode.FAILED if faults else ExitCode.OK


@config.command()
def path() -> None:
    """Print the path of config.toml, whether or not it exists.

    Examples:
      cat "$(shammah config path)"
    """
    click.echo(config_file(os.environ))


def find_faults(environ: Mapping[str, str], text: str, file: Path) -> list[ShammahError]:
    """List everything that is wrong with the settings if ``file`` holds ``text``."""
    try:
        settings, faults = examine_text(text, file, environ)
    except ShammahError as error:
        return [error]
    try:
        check_model_name(settings.model)
    except ShammahError as error:
        faults.append(error)
    return faults


def _report(faults: list[ShammahError]) -> None:
    for fault in faults:
        echo(f"{fault.message} {fault.hint}".rstrip(), err=True)


# --- changing -----------------------------------------------------------------------------


@config.command(
    "set",
    context_settings={"ignore_unknown_options": True},  # -1 is a value
    short_help="Write one setting to config.toml; the others stay.",
)
@name_argument
@click.argument("values", nargs=-1)
def set_(name: str, values: tuple[str, ...]) -> int:
    """Write one setting to config.toml; every other line stays as it is.

    Examples:
      shammah config set inference.keep_alive 600
      shammah config set privacy.words Alice "Project X"  a list of two texts
      shammah config set privacy.words                    an empty list
      shammah config set cloud.api_key -                  asks for it, hidden
    """
    path, file = _known(name), config_file(os.environ)
    if is_secret(path) and values == ("-",):
        values = (_read_secret(name),)
    value = _parse(path, values)
    if path == ("model",):
        value = absolute_model(value)
    text = read_config(file)
    parse_config(text, file)
    changed = with_setting(text, path, value)
    _refuse_if_wrong(file, text, changed)
    save(file, changed)
    echo(f"{written(name, value)} ({file})")
    variable = next((v for v, p in ENVIRONMENT.items() if p == path and os.environ.get(v)), "")
    if variable:
        echo(f"But {variable} is set and overrides it.")
    return ExitCode.OK


def _known(name: str) -> tuple[str, ...]:
    path = tuple(name.split("."))
    if path in setting_names(path[1:2] if path[0] == SERVERS else ()):
        return path
    import difflib

    last = [".".join(one) for one in setting_names() if one[-1] == path[-1]]
    near = last or difflib.get_close_matches(name, map(".".join, setting_names()), n=1)
    hint = f"Did you mean {near[0]}?" if near else "`shammah config show` lists all settings."
    why = f"Unknown setting {name!r:.60}."
    raise ShammahError("config_invalid", why, hint, exit_code=ExitCode.USAGE)


def _parse(path: tuple[str, ...], given: tuple[str, ...]) -> Any:
    """Return the value that ``given`` means. Invalid values stay text, which the check refuses."""
    named = {path[1]: ServerSettings()} if path[0] == SERVERS else {}
    default = value_of(Settings(Path(), servers=named), path)
    if isinstance(default, tuple):
        return given
    if len(given) != 1:
        raise UsageError(f"{'.'.join(path)} takes one value, not {len(given)}.")
    (text,) = given
    if isinstance(default, bool):
        return {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(default, int | float):
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(text)
    return text


def _read_secret(name: str) -> str:
    if sys.stdin.isatty():
        return str(click.prompt("API key", hide_input=True, err=True)).strip()
    secret = sys.stdin.readline().strip()
    if not secret:
        raise UsageError(
            "The input is empty.", f"To remove the key: `shammah config set {name} ''`."
        )
    return secret


def _refuse_if_wrong(file: Path, before: str, after: str) -> None:
    """Refuse a change that brings a new fault."""
    known = {_without_line(fault.message) for fault in find_faults({}, before, file)}
    for fault in find_faults({}, after, file):
        message = _without_line(fault.message)
        if message not in known:
            raise ShammahError(fault.code, message, fault.hint, exit_code=ExitCode.USAGE)


def _without_line(message: str) -> str:
    return re.sub(r": line \d+: ", ": ", message)


# --- the editor ---------------------------------------------------------------------------


@config.command()
def edit() -> int:
    """Open config.toml in $VISUAL or $EDITOR.

    You edit a copy. It replaces the file once it is valid; until then you can edit it again, and
    nothing you wrote is lost.

    Examples:
      shammah config edit
      VISUAL="code --wait" shammah config edit
    """
    file = config_file(os.environ)
    before = file.read_bytes() if file.exists() else b""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=file.parent, prefix="config-edited-", suffix=".toml")
    with open(fd, "wb") as copy:
        copy.write(before or NEW_FILE.encode())
    copied = Path(name)
    first = copied.read_bytes()
    try:
        while True:
            _edit(copied, first)
            try:
                faults = find_faults({}, read_config(copied), file)
            except ShammahError as error:
                faults = [error]
            if not faults:
                return _take(file, copied, before, first)
            _report(faults)
            if not (sys.stdin.isatty() and confirm("Edit it again?", enter=True)):
                echo(f"{file} is unchanged. What you wrote is in {copied}.", err=True)
                return ExitCode.FAILED
    finally:
        if copied.exists() and copied.read_bytes() in (first, b""):
            copied.unlink()


def _edit(copied: Path, first: bytes) -> None:
    try:
        edit_file(copied)
    except ShammahError as error:
        wrote = copied.exists() and copied.read_bytes() not in (first, b"")
        hint = f"What you wrote is in {copied}." if wrote else error.hint
        raise ShammahError(error.code, f"{error.message} Nothing was changed.", hint) from error


def _take(file: Path, copied: Path, before: bytes, first: bytes) -> int:
    """Replace ``file`` by ``copied``, unless it has changed in the meantime."""
    after = copied.read_bytes()
    if after == first:
        echo(f"{file} is unchanged.")
        return ExitCode.OK
    if (file.read_bytes() if file.exists() else b"") != before:
        why = f"{file} was changed while you edited; it was not overwritten."
        raise ShammahError("config_changed", why, f"What you wrote is in {copied}.")
    save(file, after.decode("utf-8-sig"))
    os.unlink(copied)
    echo(f"Saved {file}.")
    return ExitCode.OK
