#!/usr/bin/env python3
"""Keep what the documents say about the code true.

Every part of a document between ``<!-- generated: NAME -->`` and ``<!-- end -->`` is written
from the code. A test runs ``--check``.

    .venv/bin/python scripts/generate_docs.py            rewrite what has changed
    .venv/bin/python scripts/generate_docs.py --check    say what would change, exit 1
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args

import click

from shammah import errors
from shammah.bus import codec, messages
from shammah.cli.main import main as cli
from shammah.settings import model
from shammah.settings.model import ENVIRONMENT, Settings

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SECTION = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def settings_table() -> str:
    """Every setting with its default, its environment variable and what it means."""
    variables = {".".join(path): name for name, path in ENVIRONMENT.items()}
    words = attribute_docstrings(Path(model.__file__))
    rows = ["| setting | default | environment | meaning |", "|---|---|---|---|"]
    for path, owner, value in walk_settings(Settings(Path("~/.shammah"))):
        name = ".".join(path)
        shown = "none" if value == "" else f"`{value}`"
        variable = f"`{variables[name]}`" if name in variables else ""
        meaning = " ".join(words[(owner, path[-1])].split())
        rows.append(f"| `{name}` | {shown} | {variable} | {meaning} |")
    return "\n".join(rows)


def walk_settings(
    table: object, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str, object]]:
    for field in fields(table):  # type: ignore[arg-type]
        value = getattr(table, field.name)
        if is_dataclass(value):
            yield from walk_settings(value, (*path, field.name))
        elif field.name == model.SERVERS:
            yield from walk_settings(model.ServerSettings(), (field.name, "NAME"))
        elif field.name != "home":
            yield (*path, field.name), type(table).__name__, value


def attribute_docstrings(module: Path) -> dict[tuple[str, str], str]:
    """(class, attribute) to the string that follows the attribute in the source."""
    found = {}
    for node in ast.parse(module.read_text()).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for statement, following in zip(node.body, node.body[1:], strict=False):
            match statement, following:
                case (
                    ast.AnnAssign(target=ast.Name(id=name))
                    | ast.Assign(targets=[ast.Name(id=name)]),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[node.name, name] = text
    return found


def exit_codes() -> str:
    """Every exit status."""
    words = attribute_docstrings(Path(errors.__file__))
    rows = ["| status | meaning |", "|---|---|"]
    for code in errors.ExitCode:
        rows.append(f"| {code.value} | {words.get(('ExitCode', code.name), 'Done.')} |")
    return "\n".join(rows)


def message_table() -> str:
    """Every message of the bus with its fields."""
    rows = ["| message | kind | fields | meaning |", "|---|---|---|---|"]
    unions = {"request": messages.Request, "reply": messages.Reply, "state": messages.State}
    kinds: dict[str, list[type]] = {kind: [*get_args(one)] for kind, one in unions.items()}
    known = [cls for classes in kinds.values() for cls in classes]
    kinds["value"] = [cls for cls in codec.TABLE.values() if cls not in known]
    for kind, classes in kinds.items():
        for cls in classes:
            if kind == "reply" and cls in kinds["state"]:
                continue  # Failed stands among the states
            shown = ", ".join(f"`{field.name}`" for field in fields(cls))
            words = (cls.__doc__ or "").split("\n\n")[0]
            rows.append(f"| `{cls.__name__}` | {kind} | {shown} | {' '.join(words.split())} |")
    return "\n".join(rows)


def help_texts() -> str:
    """The help of the program and of every command."""
    parts = [help_of(cli, "shammah")]
    for name in cli.list_commands(click.Context(cli)):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        parts.append(help_of(command, f"shammah {name}"))
    return "\n\n".join(f"```text\n{part}\n```" for part in parts)


def help_of(command: click.Command, name: str) -> str:
    context = click.Context(cli, info_name="shammah", terminal_width=78, **cli.context_settings)
    if command is not cli:
        context = click.Context(command, context, name.split()[1], terminal_width=78)
    lines = (line.rstrip() for line in command.get_help(context).splitlines())
    return "\n".join(lines)


def packages() -> str:
    """The packages of `shammah`, what they are for, and what they may import."""
    source = ast.parse((ROOT / "tests" / "test_architecture.py").read_text())
    floors = next(
        ast.unparse(node.value)
        for node in source.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "FLOORS" and node.value
    )
    rows = ["| package | what it is for | may import |", "|---|---|---|"]

    for name, below in eval(floors).items():
        place = ROOT / name.replace(".", "/")
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        words = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")[0]
        shown = ", ".join(f"`{one}`" for one in sorted(below))
        rows.append(f"| `{name.removeprefix('shammah.')}` | {words} | {shown} |")
    return "\n".join(rows)


GENERATORS: dict[str, Callable[[], str]] = {
    "settings": settings_table,
    "exit-codes": exit_codes,
    "messages": message_table,
    "help": help_texts,
    "packages": packages,
}


def generate(text: str) -> str:
    """``text`` with every generated section written anew."""

    def write(match: re.Match[str]) -> str:
        return f"{match[1]}{GENERATORS[match[2]]()}\n{match[3]}"

    return SECTION.sub(write, text)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    stale = []
    for document in DOCUMENTS:
        before = document.read_text()
        after = generate(before)
        if after != before:
            stale.append(document.relative_to(ROOT))
            if not check:
                document.write_text(after)
    for name in stale:
        print(f"{name}: {'is out of date' if check else 'rewritten'}")
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
