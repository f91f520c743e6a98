"""Read the settings, and find everything that is wrong with them.

Order, later wins: defaults, ``<home>/config.toml``, environment, command line. Pure: the
environment and the command line are passed in.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from shammah.bus.record import record
from shammah.errors import ExitCode, ShammahError
from shammah.models.catalogue import is_choice, is_server_name
from shammah.models.gguf_files import ENDING
from shammah.settings.model import (
    AT_LEAST,
    CHOICES,
    CLAUDE,
    ENVIRONMENT,
    SERVERS,
    PrivacySettings,
    ServerSettings,
    SettingPath,
    Settings,
    is_secret,
    rule_of,
    setting_names,
)
from shammah.storage.paths import absolute

MAX_CONFIG_BYTES = 4 * 1024 * 1024
"""Of ``config.toml``, which may link to something endless."""

TYPES: dict[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "a table",
    tuple: "a list of texts",
}


@record
class Fault:
    """Something wrong with the value at ``path``."""

    path: SettingPath
    why: str
    hint: str = ""


def home_directory(environ: Mapping[str, str]) -> Path:
    """``$SHAMMAH_HOME``, else ``~/.shammah``."""
    return absolute(environ.get("SHAMMAH_HOME") or "~/.shammah")


def config_file(environ: Mapping[str, str]) -> Path:
    """``config.toml``, whether or not there is one."""
    return home_directory(environ) / "config.toml"


def load_settings(
    environ: Mapping[str, str], model: str | None = None, licence: str | None = None
) -> Settings:
    """Return the settings in force; ``model`` and ``licence`` are those of the command line.

    Raises:
        ShammahError: ``config_invalid``, naming the file, the line, the key and what was expected.
    """
    settings, faults = examine_settings(environ, model, licence)
    if faults:
        raise faults[0]
    return settings


def examine_settings(
    environ: Mapping[str, str], model: str | None = None, licence: str | None = None
) -> tuple[Settings, list[ShammahError]]:
    """Return the settings, with defaults where the file is wrong, and everything wrong with it.

    Raises:
        ShammahError: ``config_invalid``: the file cannot be read, or is not TOML.
    """
    file = config_file(environ)
    return examine_text(read_config(file), file, environ, model=model, licence=licence)


def examine_text(
    text: str,
    file: Path,
    environ: Mapping[str, str],
    *,
    model: str | None = None,
    licence: str | None = None,
) -> tuple[Settings, list[ShammahError]]:
    """`examine_settings`, if ``text`` is that of ``file``.

    Raises:
        ShammahError: ``config_invalid``: it is not TOML.
    """
    document = parse_config(text, file)
    for variable, path in ENVIRONMENT.items():
        if environ.get(variable):
            _put(document, path, environ[variable])
    if model:
        document["model"] = model
    if licence:
        document["licence"] = licence
    faults: list[Fault] = []
    settings: Settings = _build(Settings(file.parent), document, (), faults)
    _check_patterns(settings.privacy, faults)
    _check_servers(settings, faults)
    settings = replace(settings, model=absolute_model(settings.model))
    where = {("model",): f"--model {model}"} if model else {}
    return settings, [
        _invalid(where[fault.path], fault.why, fault.hint)
        if fault.path in where
        else _located(fault, text, file, environ)
        for fault in faults
    ]


def absolute_model(named: str) -> str:
    """Return a model's name for any working directory: a path is absolute in it."""
    if is_choice(named) or not (named.startswith(("~", ".", "/")) or _is_path(named)):
        return named
    return os.path.abspath(os.path.expanduser(named))


def _is_path(named: str) -> bool:
    return os.path.isdir(named) or (named.lower().endswith(ENDING) and ":" not in named)


# --- the file -----------------------------------------------------------------------------


def read_config(path: Path) -> str:
    """Return the text of a configuration file; empty if it does not exist.

    Raises:
        ShammahError: ``config_invalid``.
    """
    try:
        if path.is_fifo():  # without a writer, reading would never end
            raise _invalid(path, "it is a pipe, not a file")
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise _invalid(path, f"it is larger than {MAX_CONFIG_BYTES:,} bytes")
        return data.decode("utf-8-sig")  # some editors begin every file with a mark
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise _invalid(path, "it is not UTF-8 text") from error
    except OSError as error:
        raise _invalid(path, f"cannot read it ({error.strerror})") from error


def parse_config(text: str, path: Path) -> dict[str, Any]:
    """Parse ``text``, the content of ``path``.

    Raises:
        ShammahError: ``config_invalid``.
    """
    if not text:
        return {}
    import tomllib  # 10 ms that a home without a config file need not spend

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Besides TOMLDecodeError: a number of 5,000 digits, a table 1,000 levels deep.
        raise _invalid(path, f"it is not TOML ({error})") from error


def line_of(text: str, path: SettingPath) -> int:
    """Return the line of ``text``, valid TOML, where value or table ``path`` begins; 0: nowhere.

    Lines are read until they are valid TOML on their own (below the header of their table): that
    is one statement, even if its value has several lines.
    """
    import tomllib

    header, chunk, begin = "", "", 0
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not chunk:
            begin = number
            if not line.strip() or line.lstrip().startswith("#"):
                continue
        chunk += line
        is_header = chunk.lstrip().startswith("[")
        with contextlib.suppress(tomllib.TOMLDecodeError):
            found = tomllib.loads(chunk if is_header else header + chunk)
            if holds(found, path):
                return begin
            header, chunk = chunk if is_header else header, ""
    return 0


def holds(document: Mapping[str, Any], path: SettingPath) -> bool:
    """Whether ``document`` has a value or a table at ``path``."""
    inner: Any = document
    for name in path:
        if not isinstance(inner, dict) or name not in inner:
            return False
        inner = inner[name]
    return True


def _put(document: dict[str, Any], path: SettingPath, value: str) -> None:
    *tables, key = path
    for table in tables:
        inner = document.setdefault(table, {})
        if not isinstance(inner, dict):
            return  # `_build` names the wrong type.
        document = inner
    document[key] = value


# --- what each value may be ---------------------------------------------------------------


def _build(base: Any, document: Mapping[str, Any], path: SettingPath, faults: list[Fault]) -> Any:
    """Return ``base`` with the values of ``document``, which is at ``path``. A wrong value is
    added to ``faults``, and the one in ``base`` stays."""
    known = {field.name for field in fields(base)} - {"home"}
    changes = {}
    for key, value in document.items():
        here = (*path, key)
        if key not in known:
            faults.append(Fault(here, f"unknown setting {'.'.join(here)}", _near(here, known)))
            continue
        default = getattr(base, key)
        if here == (SERVERS,):
            changes[key] = _build_servers(value, faults)
            continue
        is_table = is_dataclass(default)
        checked = _checked(value, dict if is_table else type(default), here)
        if isinstance(checked, Fault):
            faults.append(checked)
        else:
            changes[key] = _build(default, checked, here, faults) if is_table else checked
    return replace(base, **changes)


def _build_servers(tables: Any, faults: list[Fault]) -> dict[str, ServerSettings]:
    """Return the servers of the file by their names; what is wrong is added to ``faults``."""
    tables = _checked(tables, dict, (SERVERS,))
    if isinstance(tables, Fault):
        faults.append(tables)
        return {}
    found = {}
    for name, table in tables.items():
        here = (SERVERS, name)
        checked = _checked(table, dict, here)
        if isinstance(checked, Fault):
            faults.append(checked)
        elif not re.fullmatch(r"[\w-]{1,40}", name, re.ASCII):
            why = f"{name!r:.60} is no name for a server: letters, digits, - and _ only"
            faults.append(Fault(here, why))
        else:
            found[name] = _build(ServerSettings(), checked, here, faults)
    return found


def _near(path: SettingPath, known: Collection[str]) -> str:
    """Return the name that was probably meant, if there is a similar one."""
    import difflib  # only for the error's hint

    near = difflib.get_close_matches(path[-1], sorted(known), n=1)
    same = [one for one in setting_names() if one[-1] == path[-1]]
    meant = [(*path[:-1], near[0])] if near else same
    return f"Did you mean {'.'.join(meant[0])}?" if meant else ""


def _checked(value: Any, expected: type, path: SettingPath) -> Any:
    """``value``, or the `Fault` that it is."""
    name = ".".join(path)
    if expected is tuple and type(value) is list and all(type(one) is str for one in value):
        value = tuple(value)
    if expected is float and type(value) is int:
        with contextlib.suppress(OverflowError):
            value = float(value)
    finite = not isinstance(value, float) or math.isfinite(value)
    if type(value) is not expected or not finite:
        found = "what it is" if is_secret(path) else f"{value!r:.40}"
        return Fault(path, f"{name} must be {TYPES[expected]}, not {found}")
    choices = CHOICES.get(rule_of(path))
    if choices and value not in choices:
        return Fault(path, f"{name} must be one of {', '.join(choices)}, not {value!r:.40}")
    least = AT_LEAST.get(rule_of(path))
    if least is not None and isinstance(value, int | float) and value < least:
        return Fault(path, f"{name} must be at least {least}, not {value}")
    return value


def _check_patterns(privacy: PrivacySettings, faults: list[Fault]) -> None:
    """Refuse lists of the person's own that could not be obeyed."""
    if any(not word.strip() for word in privacy.words):
        faults.append(Fault(("privacy", "words"), "privacy.words contains an empty word"))
    if any(not path.strip() for path in privacy.paths):
        faults.append(Fault(("privacy", "paths"), "privacy.paths contains an empty path"))
    if not privacy.patterns:
        return
    from shammah.settings.patterns import Pattern, PatternError  # most people have none

    for source in privacy.patterns:
        try:
            Pattern(source)
        except PatternError as error:
            why = f"privacy.patterns contains {source!r:.60}, which {error}"
            hint = "docs/PRIVACY.md says what a pattern may contain."
            faults.append(Fault(("privacy", "patterns"), why, hint))


def _check_servers(settings: Settings, faults: list[Fault]) -> None:
    """Refuse servers that could not be asked, or that would be asked what they must not be."""
    for name, server in settings.servers.items():
        faults += _server_faults(name, server)
    chosen, provider = settings.server, settings.cloud.provider
    if is_server_name(settings.model):
        found = settings.servers.get(chosen)
        why, hint = "", "docs/SERVERS.md shows how to name one."
        if found is None:
            why = f"there is no [{SERVERS}.{chosen:.40}] for {settings.model!r:.80}"
        elif not found.base_url:
            why = f"{SERVERS}.{chosen}.base_url is not set"
        elif not found.takes_private:
            why = f"{chosen} may not have private questions, so it cannot be the local model"
            hint = "Without this it answers beside the local model, what is not private."
            if found.trust == "trusted":
                hint += f" Or allow them with `shammah config set {SERVERS}.{chosen}.private true`."
        faults += [Fault(("model",), why, hint)] if why else []
    if provider != CLAUDE:
        at = ("cloud", "provider")
        found = settings.servers.get(provider)
        if found is None or found.trust != "cloud":
            why = f"there is no [{SERVERS}.{provider:.40}] whose trust is cloud"
            faults.append(Fault(at, why, "docs/SERVERS.md shows how to name one."))
        elif not (found.base_url and found.model):
            why = f"{SERVERS}.{provider} needs a base_url and a model to be the cloud"
            faults.append(Fault(at, why, "docs/SERVERS.md shows both."))


def _server_faults(name: str, server: ServerSettings) -> Iterator[Fault]:
    from urllib.parse import urlsplit  # 10 ms that few need

    at, here = (SERVERS, name, "base_url"), f"{SERVERS}.{name}.base_url"
    if server.private and server.trust == "cloud":
        why = f"{SERVERS}.{name}.private is true, but its trust is cloud"
        hint = "Only a trusted server may have private questions."
        yield Fault((SERVERS, name, "private"), why, hint)
    if not server.base_url and server.trust != "local":
        return  # `shammah config set` sets one value at a time
    try:
        parts = urlsplit(server.base_url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        parts, host = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not host:
        hint = "Write it like http://127.0.0.1:8000/v1."
        yield Fault(at, f"{here} is not an http address", hint)
    elif server.trust == "local" and not _is_loopback(host):
        hint = (
            "A local server is at localhost, 127.0.0.1 or ::1. For another machine of yours: "
            f"`shammah config set {SERVERS}.{name}.trust trusted`; for a provider: cloud."
        )
        yield Fault(at, f"{here} is another machine, {host:.60}", hint)


def _is_loopback(host: str) -> bool:
    """Whether a host in an address is this machine, whatever its name server says."""
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _located(fault: Fault, text: str, file: Path, environ: Mapping[str, str]) -> ShammahError:
    for variable, path in ENVIRONMENT.items():
        if path == fault.path and environ.get(variable):
            return _invalid(variable, fault.why, fault.hint)
    line = line_of(text, fault.path)
    return _invalid(file, (f"line {line}: " if line else "") + fault.why, fault.hint)


def _invalid(where: Path | str, why: str, hint: str = "") -> ShammahError:
    return ShammahError(
        "config_invalid",
        f"{where}: {why}.",
        hint or "configs/default.toml lists every setting.",
        exit_code=ExitCode.USAGE,
    )
