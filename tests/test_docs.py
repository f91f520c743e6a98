"""The documents say what the code does."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_generated_sections_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "generate_docs.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, f"{checked.stdout}{checked.stderr}\nrun {command[1]}"


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_points_at_is_there(document: Path) -> None:
    text = document.read_text()
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    places = re.findall(r"`((?:shammah|workers|tests|scripts|configs|docs)/[\w./-]*)", text)
    missing = [link for link in links if not (document.parent / link).exists()]
    missing += [place for place in places if not (ROOT / place).exists()]
    assert not missing


MODULES = sorted([*(ROOT / "shammah").rglob("*.py"), *(ROOT / "workers").rglob("*.py")])


def _arguments(node: ast.AST) -> set[str]:
    """The arguments of a function, or those that a class is made with."""
    if isinstance(node, ast.ClassDef):
        made = [one for one in node.body if getattr(one, "name", "") == "__init__"]
        if not made:
            return {ast.unparse(one.target) for one in node.body if isinstance(one, ast.AnnAssign)}
        node = made[0]
    return {one.arg for one in ast.walk(node) if isinstance(one, ast.arg)}


def test_a_docstring_explains_arguments_that_exist() -> None:
    wrong = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            section = re.search(r"Args:\n(.*?)(?:\n\S|\Z)", ast.get_docstring(node) or "", re.S)
            named = re.findall(r"^    (\w+):", section[1], re.M) if section else []
            wrong += [f"{path}: {node.name}: {one}" for one in set(named) - _arguments(node)]
    assert not wrong


def test_a_name_with_its_module_in_backticks_exists() -> None:
    """As `shammah.router.route.Override`, which was renamed once and left behind in a comment."""
    wrong = []
    for path in MODULES:
        for name in re.findall(r"`((?:shammah|workers)(?:\.\w+)+)`", path.read_text()):
            parts = name.split(".")
            found = ROOT
            while parts and ((found / parts[0]).is_dir() or (found / f"{parts[0]}.py").exists()):
                found /= parts.pop(0)
            source = found / "__init__.py" if found.is_dir() else found.with_suffix(".py")
            if (
                parts
                and parts[0] != "json"
                and not re.search(rf"\b{parts[0]}\b", source.read_text())
            ):
                wrong.append(f"{path}: {name}")
    assert not wrong
