"""``shammah adapters``: what is shown, chosen and taken back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shammah.cli.adapters import describe_curve
from shammah.cli.main import run
from shammah.errors import ExitCode
from shammah.learning.adapters import ACCEPTED, CONFIG, REFUSED, WEIGHTS, AdapterEntry, AdapterStore
from shammah.settings.model import Settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("SHAMMAH_HOME", str(tmp_path / "home"))
    return Settings(tmp_path / "home")


def adapters(*arguments: str | Path) -> int:
    return run(["adapters", *map(str, arguments)])


def add(
    settings: Settings, name: str, verdict: str = ACCEPTED, private: int = 0, **more: object
) -> AdapterEntry:
    def fill(directory: Path) -> None:
        (directory / CONFIG).write_text("{}")
        (directory / WEIGHTS).write_text(name)

    store = AdapterStore(settings.home)
    made = f"2026-11-25T10:00:{len(store.entries()):02}Z"
    training = {
        "rank": 16,
        "private_examples": private,
        "target_modules": ["q_proj", "v_proj"],
        "held_out_curve": [[0, 3.0], [3, 1.5]],
        "best_step": 3,
        **more,
    }
    gate = {"why": "It helps."}
    entry = AdapterEntry(name, Path(), "starter", "r1", made, "", training, gate, verdict)
    return store.add(entry, fill)


def test_an_empty_list_says_what_makes_one(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adapters("list") == 0
    assert "shammah train" in capsys.readouterr().out


def test_the_list_marks_what_serves(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    add(settings, "one")
    add(settings, "two", REFUSED)
    adapters("use", "one")
    capsys.readouterr()
    adapters("list")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("* one  accepted")
    assert lines[1].startswith("  two  refused")
    adapters("list", "--json")
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["name"], one["serves"]) for one in told] == [("one", True), ("two", False)]


def test_one_is_shown_with_its_figures(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    add(settings, "one", sources={"local": 2, "person": 12})
    adapters("show", "one")
    out = capsys.readouterr().out
    assert "accepted. It helps." in out
    assert "q_proj, v_proj" in out
    assert "sources            2 local, 12 person" in out
    assert "held-out loss      step     0    3.000  " in out
    assert "held_out_curve" not in out.replace(" ", "_")
    adapters("show", "one", "--json")
    assert json.loads(capsys.readouterr().out)["training"]["rank"] == 16


def test_rollback_tells_what_answers_now(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    add(settings, "one")
    add(settings, "two")
    for name in ("one", "two", "base"):
        adapters("use", name)
    capsys.readouterr()
    for _ in range(3):
        adapters("rollback")
    assert capsys.readouterr().out.splitlines() == [
        "starter uses two again, from your next question.",
        "starter uses one again, from your next question.",
        "starter uses no adapter again, from your next question.",
    ]


def test_a_refused_one_is_used_only_by_force(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    add(settings, "two", REFUSED)
    assert adapters("use", "two") != ExitCode.OK
    assert "was refused" in capsys.readouterr().err
    assert adapters("use", "two", "--force") == 0


def test_which_model_is_meant_must_be_clear(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adapters("rollback") != ExitCode.OK
    assert "No adapter has been used yet" in capsys.readouterr().err


def test_an_export_is_whole_and_warns_of_what_was_private(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(settings, "one", private=2)
    assert adapters("export", "one", tmp_path / "out") == 0
    assert (tmp_path / "out" / WEIGHTS).read_text() == "one"
    assert "2 of its examples were private" in capsys.readouterr().out
    assert adapters("export", "one", tmp_path / "out") != ExitCode.OK
    assert "already exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (
            {"source": "feedback", "sources": {"cloud": 3}},
            "3 of its examples were answered by Claude",
        ),
        ({"source": "feedback"}, "made by a version that did not tell answers of Claude's"),
        ({"source": "feedback", "sources": {"person": 3}}, ""),
        ({"source": "imported"}, ""),
    ],
)
def test_an_export_says_whether_claudes_answers_were_learnt(
    settings: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    training: dict[str, object],
    said: str,
) -> None:
    add(settings, "one", **training)
    assert adapters("export", "one", tmp_path / "out") == 0
    _, *more = capsys.readouterr().out.splitlines()
    assert len(more) == bool(said)
    assert said in "".join(more)


def test_one_that_serves_is_not_deleted(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    add(settings, "one")
    adapters("use", "one")
    assert adapters("rm", "one") != ExitCode.OK
    assert "serves starter" in capsys.readouterr().err
    adapters("use", "base")
    assert adapters("rm", "one") == 0
    assert AdapterStore(settings.home).entries() == ()


def test_the_curve_is_as_long_as_the_loss_is_high() -> None:
    assert list(describe_curve([[0, 4.0], [3, 1.0], [6, 1.1]], 3)) == [
        f"step     0    4.000  {'#' * 40}",
        f"step     3    1.000  {'#' * 10}  kept",
        f"step     6    1.100  {'#' * 11}",
    ]


@pytest.mark.parametrize("points", [[], [[0, 0.0]]])
def test_there_is_a_curve_of_next_to_nothing(points: list[list[float]]) -> None:
    assert len(list(describe_curve(points, None))) == len(points)
