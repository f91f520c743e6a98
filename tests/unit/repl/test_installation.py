"""What is still being installed is shown while it lasts, and its end is told once."""

from __future__ import annotations

from pathlib import Path

import pytest

from shammah.repl import installation
from shammah.repl.installation import VARIABLE, Installation
from tests.fakes.sandbox import until


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(installation, "LOOK_S", 0.01)
    return []


def test_it_follows_the_file_to_its_end(tmp_path: Path, told: list[str]) -> None:
    path, shown = tmp_path / "installing", list[str]()
    path.write_text("installing more: torch 4%\n")
    one = Installation({VARIABLE: str(path)}, lambda: shown.append(one.shown), told.append)
    assert one.shown == "installing more: torch 4%"
    path.write_text("installing more: \x1b[31mtorch 5%\n")
    until(lambda: any("5%" in text for text in shown), "the next line")
    assert "\x1b" not in one.shown
    path.unlink()
    until(lambda: told, "its end")
    assert (told, one.shown) == (["Training and the other engines are installed."], "")


@pytest.mark.parametrize("environ", [{}, {VARIABLE: "/nowhere/installing"}])
def test_nothing_to_install_shows_nothing(environ: dict[str, str], told: list[str]) -> None:
    one = Installation(environ, lambda: None, told.append)
    assert (one.shown, told) == ("", [])
