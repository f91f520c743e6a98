"""What Tab offers."""

from __future__ import annotations

from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from shammah.repl.input.completion import complete
from shammah.repl.input.keyboard import ReplCompleter

COMMANDS = {"model": "takes a model", "models": "lists them", "private": "keeps", "save": "saves"}


def texts(before: str) -> list[str]:
    return [found.text for found in complete(before, COMMANDS)]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "my notes.txt").touch()
    (tmp_path / ".hidden").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "näme").touch()
    return tmp_path


def test_commands_with_what_they_do() -> None:
    found = complete("/mod", COMMANDS)
    assert [(one.text, one.replaces, one.note) for one in found] == [
        ("/model", 4, "takes a model"),
        ("/models", 4, "lists them"),
    ]


def test_nothing_in_the_midst_of_a_question() -> None:
    assert texts("what does /mod") == []
    assert texts("me@no") == []


def test_arguments() -> None:
    assert texts("/private o") == ["on", "off"]
    assert texts("/think o") == ["off", "on"]
    assert texts("/nonsense o") == []


def test_models_that_are_known_and_those_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--acme--tiny-chat").mkdir()
    (tmp_path / "datasets--acme--x").mkdir()
    assert texts("/model ")[:2] == ["auto", "starter"]
    assert "1.5B" in texts("/model 1")
    assert texts("/model ac") == ["acme/tiny-chat"]


def test_a_cache_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    assert "starter" in texts("/model ")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("before", "offered"),
    [
        ("see @no", ["notes.txt"]),
        ("@", ['"my notes.txt"', "notes.txt", "sub/"]),
        ("@my", ['"my notes.txt"']),
        ('@"my n', ['"my notes.txt"']),
        ("@'my n", ["'my notes.txt'"]),
        ("@sub/", ["sub/näme"]),
        ("@.h", [".hidden"]),
        ("@nowhere/x", []),
        ("!cat no", ["notes.txt"]),
        ("/save my", ["my notes.txt"]),
        ("/model ./su", ["./sub/"]),
    ],
)
def test_paths(before: str, offered: list[str]) -> None:
    found = complete(before, COMMANDS)
    assert [one.text for one in found] == offered
    for one in found:  # what is replaced is what was typed of it
        typed = before[len(before) - one.replaces :]
        assert one.text.strip("\"'").startswith(typed.strip("\"'"))


def test_a_name_that_would_deceive_is_shown_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photo\u202egpj.exe").touch()
    monkeypatch.chdir(tmp_path)
    (found,) = ReplCompleter({}).get_completions(Document("@photo"), CompleteEvent())
    assert found.text == "photo\u202egpj.exe"
    assert found.display_text == "photo<U+202E>gpj.exe"
