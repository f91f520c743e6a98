"""``shammah config``: what the settings are and where each comes from; changing them safely."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from shammah.errors import ExitCode, ShammahError
from shammah.models.catalogue import check_model_name
from shammah.settings.edit import save, with_setting
from shammah.settings.load import examine_settings, home_directory, parse_config, read_config
from shammah.settings.model import ENVIRONMENT, SECRET, Settings, setting_names, value_of
from shammah.settings.report import Value, explain_settings, shown, written
from shammah.terminal.confirm import confirm
from shammah.terminal.external_editor import edit_file
from shammah.terminal.output import echo
from shammah.terminal.wording import printable

NEW_FILE = "# Shammah's settings. `shammah config show` lists them all with their values.\n"


def config_path(environ: Mapping[str, str]) -> Path:
    """The file, whether or not there is one."""
    return home_directory(environ) / "config.toml"


# --- looking ------------------------------------------------------------------------------


def show_config(
    environ: Mapping[str, str],
    model: str | None,
    licence: str | None,
    *,
    changed: bool,
    as_json: bool,
) -> int:
    """Print every setting with its origin; ``changed``: only those that somebody has set."""
    values = explain_settings(environ, model, licence)
    if changed:
        values = [value for value in values if value.origin != "default"]
    if as_json:
        print(json.dumps([_document(value) for value in values], ensure_ascii=False))
        return ExitCode.OK
    lines = [(written(value.name, value.value), value.whence) for value in values]
    width = min(max((len(text) for text, _ in lines), default=0), 48)
    for text, whence in lines:
        echo(f"{text:{width}}  # {whence}")
    if not values:
        echo("Every setting is as it comes.")
    return ExitCode.OK


def get_setting(environ: Mapping[str, str], name: str, *, as_json: bool) -> int:
    """Print one setting."""
    path = _known(name)
    value = next(one for one in explain_settings(environ) if one.name == ".".join(path))
    if as_json:
        print(json.dumps(_document(value), ensure_ascii=False))
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


def validate_config(environ: Mapping[str, str], *, as_json: bool) -> int:
    """Print everything that is wrong; 1 if anything is."""
    file = config_path(environ)
    faults = find_faults(environ)
    if as_json:
        told = [{"code": f.code, "message": f.message, "hint": f.hint} for f in faults]
        print(json.dumps({"file": str(file), "ok": not faults, "problems": told}))
    else:
        _tell(faults)
        if not faults:
            there = "is right" if file.exists() else "does not exist: every setting is as it comes"
            echo(f"{file} {there}.")
    return ExitCode.FAILED if faults else ExitCode.OK


def find_faults(environ: Mapping[str, str]) -> list[ShammahError]:
    """Everything that is wrong with the settings in force."""
    try:
        settings, faults = examine_settings(environ)
    except ShammahError as error:
        return [error]
    try:
        check_model_name(settings.model)
    except ShammahError as error:
        faults.append(error)
    return faults


def _tell(faults: list[ShammahError]) -> None:
    for fault in faults:
        echo(f"{fault.message} {fault.hint}".rstrip(), err=True)


# --- changing -----------------------------------------------------------------------------


def set_setting(environ: Mapping[str, str], name: str, given: tuple[str, ...]) -> int:
    """Write one setting into the file; every other line of it stays as it is.

    Raises:
        ShammahError: no such setting, no such value, or the file cannot be changed so; it is as
            it was then.
    """
    path, file = _known(name), config_path(environ)
    if path == SECRET and given == ("-",):
        given = (_read_secret(name),)
    for text in given:
        _check_text(name, text, secret=path == SECRET)
    value = _parse(path, given)
    text = read_config(file)
    parse_config(text, file)
    changed = with_setting(text, path, value)
    _refuse_if_wrong(file, text, changed)
    save(file, changed)
    echo(f"{written(name, value)} ({file})")
    variable = next((v for v, p in ENVIRONMENT.items() if p == path and environ.get(v)), "")
    if variable:
        echo(f"But {variable} is set in this environment, and wins over it.")
    return ExitCode.OK


def _check_text(name: str, given: str, *, secret: bool) -> None:
    """Refuse what a file of text cannot hold."""
    try:
        given.encode()
    except UnicodeEncodeError as error:
        quoted = "" if secret else f" {given!r:.60}"
        why = f"The value{quoted} of {name} is not UTF-8."
        raise ShammahError("config_invalid", why, exit_code=ExitCode.USAGE) from error


def _known(name: str) -> tuple[str, ...]:
    path = tuple(name.split("."))
    if path in setting_names():
        return path
    import difflib

    every = [".".join(one) for one in setting_names()]
    last = [one for one in every if one.rpartition(".")[2] == path[-1]]
    near = last or difflib.get_close_matches(name, every, n=1)
    hint = f"Did you mean {near[0]}?" if near else "`shammah config show` lists them."
    why = f"There is no setting {name!r:.60}."
    raise ShammahError("config_invalid", why, hint, exit_code=ExitCode.USAGE)


def _parse(path: tuple[str, ...], given: tuple[str, ...]) -> Any:
    """The value that ``given`` means; what is no value stays text, and is refused as such."""
    default = value_of(Settings(Path()), path)
    if isinstance(default, tuple):
        return given
    if len(given) != 1:
        why = f"{'.'.join(path)} takes one value, not {len(given)}."
        raise ShammahError("usage", why, exit_code=ExitCode.USAGE)
    (text,) = given
    if isinstance(default, bool):
        return {"true": True, "false": False}.get(text.lower(), text)
    for kind in (int, float):
        if isinstance(default, int | float):
            try:
                return kind(text)
            except ValueError:
                continue
    return text


def _read_secret(name: str) -> str:
    if sys.stdin.isatty():
        return str(click.prompt("API key", hide_input=True, err=True)).strip()
    secret = sys.stdin.readline().strip()
    if not secret:
        why, hint = "There is no key in the input.", f"`shammah config set {name} ''` removes it."
        raise ShammahError("usage", why, hint, exit_code=ExitCode.USAGE)
    return secret


def _refuse_if_wrong(file: Path, before: str, after: str) -> None:
    """Refuse a text with a fault that the one before had not."""
    known = {_without_line(fault.message) for fault in _faults_of(before, file)}
    for fault in _faults_of(after, file):
        message = _without_line(fault.message)
        if message not in known:
            raise ShammahError(fault.code, message, fault.hint, exit_code=ExitCode.USAGE)


def _without_line(message: str) -> str:
    return re.sub(r": line \d+: ", ": ", message)


def _faults_of(text: str, file: Path) -> list[ShammahError]:
    """What would be wrong if ``text`` were that of ``file``."""
    with tempfile.TemporaryDirectory() as scratch:
        copied = Path(scratch, file.name)
        copied.write_bytes(text.encode("utf-8", "surrogateescape"))
        faults = find_faults({"SHAMMAH_HOME": scratch})
        told = [fault.message.replace(str(copied), str(file)) for fault in faults]
        return [
            ShammahError(fault.code, message, fault.hint)
            for fault, message in zip(faults, told, strict=True)
        ]


# --- the editor ---------------------------------------------------------------------------


def edit_config(environ: Mapping[str, str]) -> int:
    """Open a copy in the person's editor; it replaces the file only when nothing is wrong.

    Raises:
        ShammahError: as `edit_file`; ``config_changed``, ``config_unwritable``.
    """
    file = config_path(environ)
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
            faults = _faults_of(copied.read_bytes().decode("utf-8-sig", "surrogateescape"), file)
            if not faults:
                return _take(file, copied, before, first)
            _tell(faults)
            if not _again():
                echo(f"{file} is as it was; what you wrote is in {copied}.", err=True)
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


def _again() -> bool:
    if not sys.stdin.isatty():
        return False
    return confirm("Edit it again?", enter=True)


def _take(file: Path, copied: Path, before: bytes, first: bytes) -> int:
    """Put ``copied`` in the place of ``file``, unless that has changed meanwhile."""
    after = copied.read_bytes()
    if after == first:
        echo(f"{file} is as it was.")
        return ExitCode.OK
    if (file.read_bytes() if file.exists() else b"") != before:
        why = f"{file} has changed while you edited; nothing was overwritten."
        raise ShammahError("config_changed", why, f"What you wrote is in {copied}.")
    save(file, after.decode("utf-8-sig"))
    os.unlink(copied)
    echo(f"{file} is written.")
    return ExitCode.OK
