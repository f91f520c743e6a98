"""One change of ``config.toml`` that leaves every other line of it as it is."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shammah.errors import ExitCode, ShammahError
from shammah.settings.toml_lines import find_statements

_TABLE = re.compile(r"(?:^[ \t]*#.*\n)*^[ \t]*\[", re.MULTILINE)
"""A table's header, with the comment that stands directly above it."""


def with_model(text: str, model: str) -> str:
    """The text of a configuration file, with ``model`` as its top-level ``model``.

    Raises:
        ShammahError: ``config_not_editable``.
    """
    return with_setting(text, ("model",), model)


def with_setting(text: str, path: tuple[str, ...], value: Any) -> str:
    """The text of a configuration file, with ``value`` as the setting ``path``.

    Args:
        text: valid TOML.
        path: a key, or a table and a key.
        value: text, a truth value, a number or a list of texts.

    Raises:
        ShammahError: ``config_not_editable``.
    """
    wanted = tomllib.loads(text)
    inner = wanted if len(path) == 1 else wanted.setdefault(path[0], {})
    name, written = ".".join(path), as_toml(value)
    if isinstance(inner, dict):
        inner[path[-1]] = list(value) if isinstance(value, tuple) else value
        for changed in _candidates(text, path, written):
            # A line that looks right may stand in a table, or inside a text of several lines.
            with contextlib.suppress(tomllib.TOMLDecodeError):
                if _same(tomllib.loads(changed), wanted):
                    return changed
    raise ShammahError(
        "config_not_editable",
        f"The setting `{name}` cannot be changed without touching others.",
        f"`shammah config edit` opens the file: write {path[-1]} = {written} there by hand.",
    )


def _candidates(text: str, path: tuple[str, ...], value: str) -> Iterator[str]:
    yield from _replaced(text, path, value)
    end = "\r\n" if "\r\n" in text else "\n"
    line = f"{path[-1]} = {value}{end}"
    below = text + ("" if not text or text.endswith("\n") else end)
    if len(path) > 1:
        yield from _added_to_table(text, path, line, end)
        yield below + (end if below else "") + f"[{path[0]}]{end}{line}"
        return
    for table in _TABLE.finditer(text):
        yield text[: table.start()] + line + end + text[table.start() :]
    yield below + line
    yield line + text


def _replaced(text: str, path: tuple[str, ...], value: str) -> Iterator[str]:
    """Every text in which a statement that sets ``path`` has ``value`` instead of its own."""
    lines = text.splitlines(keepends=True)
    for statement in find_statements(text):
        if statement.paths != (path,):
            continue
        before = "".join(lines[: statement.first - 1])
        own = "".join(lines[statement.first - 1 : statement.last])
        after = "".join(lines[statement.last :])
        for equals in re.finditer(r"=[ \t]*", own):
            for end in _ends(own, equals.end()):
                yield before + own[: equals.end()] + value + own[end:] + after


def _ends(statement: str, begin: int) -> Iterator[int]:
    """Where the value may end: before a comment, or at the end of the line."""
    whole = tomllib.loads(statement)
    line = statement.rstrip("\r\n")
    for sharp in re.finditer(r"[ \t]*#", statement[begin:]):
        end = begin + sharp.start()
        with contextlib.suppress(tomllib.TOMLDecodeError):
            if _same(tomllib.loads(statement[:end]), whole):
                yield end
                break
    yield len(line.rstrip())


def _added_to_table(text: str, path: tuple[str, ...], line: str, end: str) -> Iterator[str]:
    lines = text.splitlines(keepends=True)
    last = 0
    for statement in find_statements(text):
        if statement.table == path[:-1]:
            last = statement.last
    if last:
        above = "".join(lines[:last])
        above += "" if above.endswith("\n") else end
        yield above + line + "".join(lines[last:])


def as_toml(value: Any) -> str:
    """``value`` as it is written in a configuration file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_quoted, value))}]"
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(value: str) -> str:
    # A JSON string is a TOML string, but for DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    # As text: nan is not equal to itself, and 1 is equal to true.
    return sorted(map(repr, one.items())) == sorted(map(repr, other.items()))


def save(path: Path, text: str) -> None:
    """Write the file in one step, for its owner alone.

    Raises:
        ShammahError: ``config_unwritable``; the file is as it was.
    """
    try:
        save_bytes(path, text.encode("utf-8"))
    except OSError as error:
        raise ShammahError(
            "config_unwritable",
            f"{path} cannot be written ({error.strerror}).",
            "Check that the directory is yours and the disk is not full; SHAMMAH_HOME moves it.",
        ) from error
    except UnicodeEncodeError as error:
        raise ShammahError(
            "config_unwritable",
            f"{path} is UTF-8, which cannot hold this name.",
            "Rename the directory, or give it with --model each time.",
            exit_code=ExitCode.USAGE,
        ) from error


def save_bytes(path: Path, data: bytes) -> None:
    """Write any file in one step, for its owner alone.

    Raises:
        OSError: the file is as it was.
    """
    target = Path(os.path.realpath(path))  # a link, as dotfile managers make them, stays
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
