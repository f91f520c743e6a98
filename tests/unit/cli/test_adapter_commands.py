"""``shammah adapters``: what is shown, chosen and taken back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shammah.cli import adapter_commands
from shammah.errors import ShammahError
from shammah.learning.adapters import ACCEPTED, CONFIG, REFUSED, WEIGHTS, AdapterEntry, AdapterStore
from shammah.settings.model import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "home")


def add(settings: Settings, name: str, verdict: str = ACCEPTED, private: int = 0) -> AdapterEntry:
    def fill(directory: Path) -> None:
        (directory / CONFIG).write_text("{}")
        (directory / WEIGHTS).write_text(name)

    store = AdapterStore(settings.home)
    made = f"2026-11-25T10:00:{len(store.entries()):02}Z"
    training = {"rank": 16, "private_examples": private, "target_modules": ["q_proj", "v_proj"]}
    gate = {"why": "It helps."}
    entry = AdapterEntry(name, Path(), "starter", "r1", made, "", training, gate, verdict)
    return store.add(entry, fill)


def test_an_empty_list_says_what_makes_one(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adapter_commands.list_adapters(settings, as_json=False) == 0
    assert "shammah train" in capsys.readouterr().out


def test_the_list_marks_what_serves(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    add(settings, "one")
    add(settings, "two", REFUSED)
    adapter_commands.use_adapter(settings, "one", None, force=False)
    capsys.readouterr()
    adapter_commands.list_adapters(settings, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("* one  accepted")
    assert lines[1].startswith("  two  refused")
    adapter_commands.list_adapters(settings, as_json=True)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["name"], one["serves"]) for one in told] == [("one", True), ("two", False)]


def test_one_is_shown_with_its_figures(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    add(settings, "one")
    adapter_commands.show_adapter(settings, "one", as_json=False)
    out = capsys.readouterr().out
    assert "accepted. It helps." in out
    assert "q_proj, v_proj" in out
    adapter_commands.show_adapter(settings, "one", as_json=True)
    assert json.loads(capsys.readouterr().out)["training"]["rank"] == 16


def test_rollback_tells_what_answers_now(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    add(settings, "one")
    add(settings, "two")
    for name in ("one", "two", "base"):
        adapter_commands.use_adapter(settings, name, None, force=False)
    capsys.readouterr()
    for _ in range(3):
        adapter_commands.rollback(settings, None)
    assert capsys.readouterr().out.splitlines() == [
        "starter answers with two again, from the next question on.",
        "starter answers with one again, from the next question on.",
        "starter answers without an adapter again, from the next question on.",
    ]


def test_a_refused_one_is_used_only_by_force(settings: Settings) -> None:
    add(settings, "two", REFUSED)
    with pytest.raises(ShammahError, match="was refused"):
        adapter_commands.use_adapter(settings, "two", None, force=False)
    assert adapter_commands.use_adapter(settings, "two", None, force=True) == 0


def test_which_model_is_meant_must_be_clear(settings: Settings) -> None:
    with pytest.raises(ShammahError, match="No adapter has served yet"):
        adapter_commands.rollback(settings, None)


def test_an_export_is_whole_and_warns_of_what_was_private(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(settings, "one", private=2)
    assert adapter_commands.export_adapter(settings, "one", tmp_path / "out") == 0
    assert (tmp_path / "out" / WEIGHTS).read_text() == "one"
    assert "2 of its examples were private" in capsys.readouterr().out
    with pytest.raises(ShammahError, match="exists already"):
        adapter_commands.export_adapter(settings, "one", tmp_path / "out")


def test_one_that_serves_is_not_deleted(settings: Settings) -> None:
    add(settings, "one")
    adapter_commands.use_adapter(settings, "one", None, force=False)
    with pytest.raises(ShammahError, match="serves starter"):
        adapter_commands.remove_adapter(settings, "one")
    adapter_commands.use_adapter(settings, "base", None, force=False)
    assert adapter_commands.remove_adapter(settings, "one") == 0
    assert AdapterStore(settings.home).entries() == ()
