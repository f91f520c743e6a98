"""Change one setting in ``config.toml`` and leave every other line as it is."""

from __future__ import annotations

import itertools
import json
import tomllib
from pathlib import Path
from typing import Any

from shammah.errors import ExitCode, ShammahError
from shammah.settings.model import SettingPath, is_secret
from shammah.storage.files import replace_file


def with_setting(text: str, path: SettingPath, value: Any) -> str:
    """Return the text of a configuration file with ``value`` as the setting ``path``.

    Args:
        text: valid TOML.
        path: a key, or a table and a key.
        value: text, a truth value, a number or a list of texts.

    Raises:
        ShammahError: ``config_not_editable``; ``config_invalid``: the value is not UTF-8.
    """
    name = ".".join(path)
    for one in value if isinstance(value, tuple) else (value,):
        if isinstance(one, str) and one != one.encode(errors="ignore").decode():
            quoted = "" if is_secret(path) else f" {one!r:.60}"
            why = f"The value{quoted} of {name} is not UTF-8."
            raise ShammahError("config_invalid", why, exit_code=ExitCode.USAGE)
    wanted = tomllib.loads(text)
    inner: Any = wanted
    for table in path[:-1]:
        inner = inner.setdefault(table, {}) if isinstance(inner, dict) else None
    if isinstance(inner, dict):
        inner[path[-1]] = list(value) if isinstance(value, tuple) else value
        changed = _changed(text, path, value)
        if changed and _same(tomllib.loads(changed), wanted):
            return changed
    raise ShammahError(
        "config_not_editable",
        f"Cannot change `{name}` without touching other settings.",
        f"Run `shammah config edit` and write {path[-1]} = {as_toml(value)} yourself.",
    )


def _changed(text: str, path: SettingPath, value: Any) -> str:
    """Return what tomlkit makes of ``text``; empty if it cannot."""
    import tomlkit  # 40 ms, only where something is changed
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(text)
        if tomlkit.dumps(document) != text:  # it joins tables of a list that stand apart
            return ""
        holder: Any = document
        for name in path[:-1]:
            if name not in holder:
                holder[name] = tomlkit.table()
            holder = holder[name]
        written = tomlkit.value(as_toml(value))
        if path[-1] in holder:
            holder[path[-1]] = written
        else:
            _add(holder, path[-1], written)
        changed = tomlkit.dumps(document)
    except (TOMLKitError, TypeError, AttributeError):  # such as a table that is a number
        return ""
    if text.count("\n") == text.count("\r\n") > 0:
        changed = changed.replace("\r\n", "\n").replace("\n", "\r\n")
    return changed


def _add(holder: Any, key: str, value: Any) -> None:
    """Put ``key`` below the last one of its table, above the comments on the next table."""
    import tomlkit
    from tomlkit.container import Container
    from tomlkit.items import AoT, Comment, Table, Whitespace

    container = holder.value if isinstance(holder, Table) else holder
    if not isinstance(container, Container):  # an inline table, or one that stands in two places
        holder[key] = value
        return
    body = container.body
    own = list(itertools.takewhile(lambda item: not isinstance(item[1], Table | AoT), body))
    at = max((number for number, (name, _) in enumerate(own, 1) if name), default=len(own))
    while at and len(own) < len(body) and isinstance(own[at - 1][1], Comment):
        at -= 1
    below = body[at:]
    del body[at:]
    holder.append(key, value)
    if below and not any(isinstance(item, Whitespace) for _, item in (body[-1], below[0])):
        container.add(tomlkit.nl())
    body += below


def as_toml(value: Any) -> str:
    """Return ``value`` as it is written in a configuration file."""
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
    """Write the file atomically, readable by its owner only.

    Raises:
        ShammahError: ``config_unwritable``; the file is as it was.
    """
    try:
        replace_file(path, text.encode("utf-8"))
    except OSError as error:
        raise ShammahError(
            "config_unwritable",
            f"Cannot write {path} ({error.strerror}).",
            "Check that you own the directory and the disk is not full. SHAMMAH_HOME moves it.",
        ) from error
