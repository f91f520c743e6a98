"""One change of ``config.toml`` that leaves every other line of it as it is."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shammah.errors import ExitCode, ShammahError

_KEY = re.compile(r"""^[ \t]*(?:model|"model"|'model')[ \t]*=[ \t]*""", re.MULTILINE)
_STRING = re.compile(
    r'''"""(?:[^\\]|\\.)*?"""+|\'\'\'.*?\'\'\'+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*\'''', re.DOTALL
)
_TABLE = re.compile(r"(?:^[ \t]*#.*\n)*^[ \t]*\[", re.MULTILINE)
"""A table's header, with the comment that stands directly above it."""


def with_model(text: str, model: str) -> str:
    """The text of a configuration file, with ``model`` as its top-level ``model``.

    Args:
        text: valid TOML, whose ``model``, if it has one, is a string.
        model: the new one.

    Raises:
        ShammahError: ``config_not_editable``.
    """
    import tomllib

    wanted = tomllib.loads(text) | {"model": model}
    for changed in _candidates(text, _quoted(model)):
        # A line that looks right may stand in a table, or inside a text of several lines.
        with contextlib.suppress(tomllib.TOMLDecodeError):
            if _same(tomllib.loads(changed), wanted):
                return changed
    raise ShammahError(
        "config_not_editable",
        "The setting `model` cannot be changed without touching others.",
        f"Write model = {_quoted(model)} into the file by hand.",
    )


def _candidates(text: str, value: str) -> Iterator[str]:
    for key in _KEY.finditer(text):
        old = _STRING.match(text, key.end())
        if old:
            yield text[: old.start()] + value + text[old.end() :]
    end = "\r\n" if "\r\n" in text else "\n"
    line = f"model = {value}{end}"
    for table in _TABLE.finditer(text):
        yield text[: table.start()] + line + end + text[table.start() :]
    yield text + ("" if not text or text.endswith("\n") else end) + line
    yield line + text


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
        target = Path(os.path.realpath(path))  # a link, as dotfile managers make them, stays
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with open(fd, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(fd)
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
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
