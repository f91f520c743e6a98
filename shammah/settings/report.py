"""Every setting with its value and its origin, and what may be shown of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from shammah.settings.edit import as_toml
from shammah.settings.load import (
    config_file,
    examine_settings,
    holds,
    line_of,
    parse_config,
    read_config,
)
from shammah.settings.model import (
    ENVIRONMENT,
    PERSONAL,
    SERVERS,
    ServerSettings,
    Settings,
    is_secret,
    setting_names,
    value_of,
)

FLAGS = {("model",): "--model", ("licence",): "--licence"}


@dataclass(frozen=True, slots=True)
class Value:
    """One setting. ``origin``: ``default``, ``file``, ``environment`` or ``flag``; ``source``
    names the file, the variable or the flag, and ``line`` is that of the file, else 0."""

    name: str
    value: Any
    origin: str
    source: str = ""
    line: int = 0

    @property
    def whence(self) -> str:
        """``default``, ``/home/me/.shammah/config.toml:3``, ``SHAMMAH_MODEL``, ``--model``."""
        return f"{self.source}:{self.line}" if self.line else self.source or self.origin


def explain_settings(
    environ: Mapping[str, str], model: str | None = None, licence: str | None = None
) -> list[Value]:
    """List every setting in force.

    Raises:
        ShammahError: ``config_invalid``.
    """
    settings, faults = examine_settings(environ, model, licence)
    if faults:
        raise faults[0]
    given = {("model",): model, ("licence",): licence}
    flags = {path: FLAGS[path] for path, value in given.items() if value}
    variables = {path: name for name, path in ENVIRONMENT.items() if environ.get(name)}
    file = config_file(environ)
    text = read_config(file)
    document = parse_config(text, file)

    def explain(path: tuple[str, ...]) -> Value:
        name, value = ".".join(path), value_of(settings, path)
        if path in flags:
            return Value(name, value, "flag", flags[path])
        if path in variables:
            return Value(name, value, "environment", variables[path])
        if holds(document, path):
            return Value(name, value, "file", str(file), line_of(text, path))
        return Value(name, value, "default")

    return [explain(path) for path in setting_names(settings.servers)]


def shown(name: str, value: Any) -> Any:
    """Return the value of the setting ``name`` as its owner may see it: no secrets."""
    if is_secret(tuple(name.split("."))):
        return "(set)" if value else ""
    address = name.endswith(".base_url") or (isinstance(value, str) and "://" in value)
    return without_secrets(value) if address and name != "system" else value


def written(name: str, value: Any) -> str:
    """``cloud.use = "ask"``, as its owner may see it."""
    safe = shown(name, value)
    return f"{name} = {safe if safe == '(set)' else as_toml(safe)}"


def without_secrets(url: str) -> str:
    """Return an address without a name, a password or a possible token."""
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="")
        return bare.geturl().removeprefix("//")
    except ValueError:  # a bracket without its other half
        return "(no address)"


def changed_settings(table: Settings, default: Settings) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of every setting that differs from its default."""
    for path in setting_names(table.servers):
        value = value_of(table, path)
        is_server = path[0] == SERVERS
        own = ServerSettings() if is_server else default
        if value != value_of(own, path[-1:] if is_server else path):
            yield ".".join(path), value


def for_strangers(name: str, value: Any) -> Any:
    """Return the value of the setting ``name`` as anybody may see it."""
    if tuple(name.split(".")) in PERSONAL:
        return f"({len(value)} {'characters' if isinstance(value, str) else 'of your own'})"
    return shown(name, value)
