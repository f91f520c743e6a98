"""The settings in force, as ``/config`` shows them. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from shammah.config import Settings

SECRET = frozenset({"cloud.api_key"})


def describe_settings(settings: Settings) -> Iterator[str]:
    """A line for each setting that is not its default; one that says so if all are."""
    changed = list(_changes(settings, Settings(settings.home), ""))
    yield from changed or ["All settings are the defaults."]


def _changes(table: Any, default: Any, prefix: str) -> Iterator[str]:
    for field in fields(table):
        name = prefix + field.name
        value, usual = getattr(table, field.name), getattr(default, field.name)
        if is_dataclass(value):
            yield from _changes(value, usual, f"{name}.")
        elif value != usual:
            shown = "(set)" if name in SECRET else json.dumps(value, ensure_ascii=False)
            yield f"{name} = {shown}"
