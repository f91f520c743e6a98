"""Which editor is started, and what is said when none can be."""

from __future__ import annotations

from pathlib import Path

import pytest

from shammah.errors import ShammahError
from shammah.terminal.external_editor import EDITORS, edit_file, edit_text


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


@pytest.fixture(autouse=True)
def bin_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ``PATH`` on which there is nothing yet."""
    for variable in ("VISUAL", "EDITOR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_visual_comes_before_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", script(tmp_path / "one", 'echo "one $1" >> "$2"') + " --wait")
    monkeypatch.setenv("EDITOR", script(tmp_path / "two", 'echo two >> "$1"'))
    assert edit_text("text") == "text\none --wait"


@pytest.mark.parametrize("name", EDITORS)
def test_without_them_the_first_that_there_is(tmp_path: Path, name: str) -> None:
    script(tmp_path / name, 'echo changed > "$1"')
    assert edit_text("text") == "changed"


def test_none_is_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ShammahError, match=r"An editor was not found\.") as raised:
        edit_file(tmp_path / "file")
    assert (raised.value.code, raised.value.hint) == (
        "no_editor",
        "Set EDITOR to an editor that is installed.",
    )
    monkeypatch.setenv("EDITOR", "/none")
    with pytest.raises(ShammahError, match=r"/none was not found\."):
        edit_file(tmp_path / "file")


def test_one_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITOR", script(tmp_path / "failing", "exit 3"))
    with pytest.raises(ShammahError, match="failing exited with status 3") as raised:
        edit_text("text")
    assert raised.value.code == "editor_failed"
