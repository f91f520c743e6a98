"""A table of engines with one row, which makes what a test wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from workers.inference.engine import EngineSpec
from workers.inference.engines.table import TRANSFORMERS


def only(make: Callable[[], Any], name: str = "fake") -> Mapping[str, EngineSpec]:
    """Return the table; ``make`` returns an engine, or what behaves like one."""
    return {name: replace(TRANSFORMERS, name=name, make=make)}
