"""Lines of earlier prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from shammah.repl.input import line_history
from shammah.repl.input.line_history import LineHistory


def lines(path: Path | None) -> list[str]:
    """The oldest first."""
    return list(LineHistory(path, lambda line: True).load_history_strings())[::-1]


def test_they_are_there_for_the_next_prompt_and_for_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "home" / "lines"
    for prompt in ("one", "two"):
        history = LineHistory(path, lambda line: True)
        history.append_string(f"{prompt} with\nseveral lines, ü")
    assert lines(path) == ["one with\nseveral lines, ü", "two with\nseveral lines, ü"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_private_one_stays_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    history = LineHistory(path, lambda line: "secret" not in line)
    history.append_string("a secret")
    history.append_string("no such thing")
    assert history.get_strings() == ["a secret", "no such thing"]
    assert "secret" not in path.read_text()
    assert lines(path) == ["no such thing"]


def test_without_a_file_there_is_memory_alone(tmp_path: Path) -> None:
    history = LineHistory(None, lambda line: True)
    history.append_string("one")
    assert history.get_strings() == ["one"]
    assert lines(None) == []


def test_a_torn_line_and_a_foreign_one_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'"one"\n"tor\n[1]\n\xff\xfe\n"two"\n')
    assert lines(path) == ["one", "two"]


def test_a_directory_in_its_place_is_no_error(tmp_path: Path) -> None:
    LineHistory(tmp_path, lambda line: True).append_string("one")
    assert lines(tmp_path) == []


def test_a_long_file_is_read_from_its_end_and_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_history, "KEPT_BYTES", 50)
    monkeypatch.setattr(line_history, "LONGEST_FILE", 240)
    path = tmp_path / "lines"
    history = LineHistory(path, lambda line: True)
    for number in range(10):
        history.append_string(f"line {number}")
    assert lines(path) == [f"line {number}" for number in range(5, 10)]
    before = path.stat().st_size
    for number in range(10, 40):
        history.append_string(f"line {number}")
    assert lines(path)[-1] == "line 39"
    assert path.stat().st_size < before
    assert path.stat().st_mode & 0o777 == 0o600
