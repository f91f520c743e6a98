"""What a confined worker had to compile is compiled before the next one."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import cache_from_source
from pathlib import Path

import pytest

from tests.fakes.sandbox import until
from workers.confinement.byte_code import compile_noted, note_compiled


def test_modules_of_the_path_are_compiled_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, outside, note = tmp_path / "in", tmp_path / "out", tmp_path / "note"
    for place in (inside, outside):
        place.mkdir()
        (place / "once_compiled.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(inside))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(SourceFileLoader, "set_data", SourceFileLoader.set_data)
    note_compiled(note)
    assert importlib.import_module("once_compiled").VALUE == 1
    source = str(inside / "once_compiled.py")
    assert source in note.read_text().splitlines()
    others = (f"{inside}/../out/once_compiled.py", str(outside / "once_compiled.py"))
    note.write_text("\n".join([*others, source, ""]))
    compile_noted(note)
    until(Path(cache_from_source(source)).exists, "it is compiled")
    assert not note.exists()
    assert not (outside / "__pycache__").exists()
