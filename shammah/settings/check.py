"""A document of ``config.toml`` against the settings: every fault, not only the first. Pure."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

Path = tuple[str, ...]
"""A setting's name, in parts: ``("cloud", "use")``."""

TYPES: dict[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "a table",
    tuple: "a list of texts",
}


@dataclass(frozen=True, slots=True)
class CheckRules:
    """What beside the type of its default a value must be.

    ``tables`` are the classes of nested settings, ``secret`` is a setting of which no error
    message may tell the value.
    """

    tables: tuple[type, ...]
    choices: Mapping[Path, tuple[str, ...]]
    at_least: Mapping[Path, int]
    secret: Path


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with the value at ``path``."""

    path: Path
    why: str
    hint: str = ""


def build(base: Any, document: Mapping[str, Any], rules: CheckRules, faults: list[Fault]) -> Any:
    """``base`` with the values of ``document``; a value that is wrong stays as it was in
    ``base``, and goes to ``faults``."""
    return _build(base, document, (), (rules, list_settings(base, rules), faults))


def list_settings(base: Any, rules: CheckRules) -> list[Path]:
    """The path of every setting of ``base``."""
    found: list[Path] = []
    for one in fields(base):
        inside: Any = getattr(base, one.name)
        if type(inside) in rules.tables:
            found += [(one.name, inner.name) for inner in fields(inside)]
        elif one.name != "home":
            found.append((one.name,))
    return found


def _build(
    base: Any,
    document: Mapping[str, Any],
    path: Path,
    context: tuple[CheckRules, list[Path], list[Fault]],
) -> Any:
    rules, every, faults = context
    known = {f.name for f in fields(base)} - {"home"}
    changes = {}
    for key, value in document.items():
        here = (*path, key)
        if key not in known:
            why = f"there is no setting {'.'.join(here)}"
            faults.append(Fault(here, why, _nearest(here, sorted(known), every)))
            continue
        default = getattr(base, key)
        is_table = isinstance(default, rules.tables)
        checked = _checked(value, dict if is_table else type(default), here, rules)
        if isinstance(checked, Fault):
            faults.append(checked)
        else:
            changes[key] = _build(default, checked, here, context) if is_table else checked
    return replace(base, **changes)


def _nearest(path: Path, beside: list[str], every: list[Path]) -> str:
    """The name that was probably meant, if there is one like it."""
    import difflib  # only for the error's hint

    near = difflib.get_close_matches(path[-1], beside, n=1)
    meant = [(*path[:-1], near[0])] if near else [one for one in every if one[-1] == path[-1]]
    return f"Did you mean {'.'.join(meant[0])}?" if meant else ""


def _checked(value: Any, expected: type, path: Path, rules: CheckRules) -> Any:
    """``value``, or the `Fault` that it is."""
    name = ".".join(path)
    if expected is tuple and type(value) is list and all(type(one) is str for one in value):
        value = tuple(value)
    if expected is float and type(value) is int:
        with contextlib.suppress(OverflowError):
            value = float(value)
    finite = not isinstance(value, float) or math.isfinite(value)
    if type(value) is not expected or not finite:
        found = "what it is" if path == rules.secret else f"{value!r:.40}"
        return Fault(path, f"{name} must be {TYPES[expected]}, not {found}")
    choices = rules.choices.get(path)
    if choices and value not in choices:
        return Fault(path, f"{name} must be one of {', '.join(choices)}, not {value!r:.40}")
    least = rules.at_least.get(path)
    if least is not None and isinstance(value, int | float) and value < least:
        return Fault(path, f"{name} must be at least {least}, not {value}")
    return value
