"""Where in a TOML file each value stands, which ``tomllib`` does not tell. Pure."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Statement:
    """One ``key = value`` or ``[table]`` with the lines it takes, counted from 1.

    ``paths`` are those of the values it sets; a header sets none and has its ``table`` alone.
    """

    table: Path
    paths: tuple[Path, ...]
    first: int
    last: int

    @property
    def is_header(self) -> bool:
        return not self.paths


def find_statements(text: str) -> Iterator[Statement]:
    """Every statement of ``text``, which is valid TOML.

    The first lines that are TOML by themselves are a statement: a value of several lines is none
    before its last.
    """
    table: Path = ()
    begin, chunk = 1, ""
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not chunk and (not line.strip() or line.lstrip().startswith("#")):
            begin = number + 1
            continue
        chunk += line
        with contextlib.suppress(tomllib.TOMLDecodeError):
            found = tomllib.loads(chunk)
            if chunk.lstrip().startswith("["):
                table = _header(found)
                yield Statement(table, (), begin, number)
            else:
                paths = tuple((*table, *path) for path in _leaves(found))
                yield Statement(table, paths, begin, number)
            begin, chunk = number + 1, ""


def line_of(text: str, path: Path) -> int:
    """The line of ``path``, a value or a table; 0: it stands nowhere."""
    for statement in find_statements(text):
        places = (statement.table,) if statement.is_header else statement.paths
        if any(place[: len(path)] == path for place in places):
            return statement.first
    return 0


def _header(found: dict[str, object]) -> Path:
    path: list[str] = []
    inner: object = found
    while isinstance(inner, dict | list) and inner:
        if isinstance(inner, list):
            inner = inner[0]
            continue
        key, inner = next(iter(inner.items()))
        path.append(key)
    return tuple(path)


def _leaves(table: dict[str, object]) -> Iterator[Path]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from ((key, *path) for path in _leaves(value))
        else:
            yield (key,)
