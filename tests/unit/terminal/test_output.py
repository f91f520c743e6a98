"""Hints name the program as it was started."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shammah.terminal.output import PROGRAM_VARIABLE, as_invoked, program

HINT = "`shammah stop` ends it; shammah is a word, `shammah-like` is not it, nor `/stop`."


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(PROGRAM_VARIABLE)
    program.cache_clear()
    yield
    program.cache_clear()


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    script = tmp_path / "bin" / "shammah"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    return script


def test_it_is_named_by_its_path_where_no_shell_would_find_it(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(installed)])
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert as_invoked(HINT) == HINT.replace("`shammah stop`", f"`{installed} stop`")


def test_it_has_its_name_where_a_shell_finds_it(
    installed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "shammah").symlink_to(installed)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "shammah")])
    monkeypatch.setenv("PATH", f"{installed.parent}:{os.environ['PATH']}")
    assert as_invoked(HINT) == HINT


def test_another_one_on_the_path_is_not_it(
    installed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "my venv" / "shammah"
    other.parent.mkdir()
    other.write_text("")
    monkeypatch.setattr(sys, "argv", [str(other)])
    monkeypatch.setenv("PATH", str(installed.parent))
    assert program() == f"'{other}'"


def test_a_script_that_starts_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROGRAM_VARIABLE, "scripts/run")
    assert as_invoked("`shammah models pull 1.5B`.") == "`scripts/run models pull 1.5B`."


def test_what_runs_in_another_program_keeps_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest"])
    assert program() == "shammah"
