"""The picture of a training's losses."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from shammah.bus.training import GateFigures, LossCurve, Trained
from shammah.cli import training_commands
from shammah.cli.training_plot import NAME, check_plot, smoothed, write_plot
from shammah.errors import ShammahError
from shammah.learning.adapters import CONFIG, WEIGHTS, AdapterEntry, AdapterStore
from shammah.settings.model import Settings

FIGURES = GateFigures(3.0, 1.0, 3, False, 300, 1.0, 0.9, 1.0, 0.5)


def trained(steps: int = 60) -> Trained:
    losses = tuple(3.0 / (1 + number / 5) for number in range(steps))
    held_out = LossCurve(losses, (0, 30, 60)[: 1 + steps // 30], (3.0, 1.5, 1.0)[: 1 + steps // 30])
    facts = ("orrin", "starter", "accepted", "It helps.", FIGURES, held_out)
    return Trained("1", *facts, 10, 2, 61.0, 100.0)


def colours(path: Path) -> set[tuple[int, ...]]:
    from PIL import Image

    with Image.open(path) as image:
        assert image.size == (960, 540)
        return {tuple(pixel) for pixel in image.convert("RGB").get_flattened_data()}


@pytest.mark.parametrize("steps", [0, 1, 30, 60])
def test_a_picture_has_both_curves(tmp_path: Path, steps: int) -> None:
    path = tmp_path / NAME
    write_plot(trained(steps), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [one.name for one in tmp_path.iterdir()] == [NAME]
    found = colours(path)
    assert (0xC2, 0x41, 0x0C) in found  # what was held out
    assert ((0x44, 0x61, 0x7B) in found) == (steps == 60)  # the mean of many steps


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(ShammahError, match="the adapter is kept"):
        write_plot(trained(), tmp_path / "none" / "loss.png")


def test_a_mean_is_of_what_came_before() -> None:
    assert smoothed((4.0, 2.0, 6.0, 1.0), 2) == [4.0, 3.0, 4.0, 3.5]


def kept(home: Path) -> Path:
    def fill(directory: Path) -> None:
        (directory / CONFIG).write_text("{}")
        (directory / WEIGHTS).write_text("")

    return AdapterStore(home).add(AdapterEntry("orrin", Path(), "starter"), fill).directory


def test_it_lies_with_its_adapter_unless_another_place_is_named(tmp_path: Path) -> None:
    directory = kept(tmp_path / "home")
    said = training_commands._draw(Settings(tmp_path / "home"), trained(), None)
    assert said == f"The losses are drawn in {directory / NAME}."
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700  # so nobody else sees it
    training_commands._draw(Settings(tmp_path / "home"), trained(), tmp_path / "mine.png")
    assert (tmp_path / "mine.png").read_bytes() == (directory / NAME).read_bytes()


def test_without_matplotlib_it_is_told_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'shammah[plots]'" in training_commands._draw(
        Settings(tmp_path), trained(), None
    )
    with pytest.raises(ShammahError, match="needs matplotlib") as caught:
        check_plot(Path("loss.png"))
    assert "pip install 'shammah[plots]'" in caught.value.hint


def test_nobody_pays_for_it_who_draws_nothing() -> None:
    import subprocess

    code = "import sys, shammah.cli.training_commands; print('matplotlib' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert ended.stdout == b"False\n"


def test_a_place_that_is_not_there_is_refused_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(ShammahError, match="there is no directory"):
        check_plot(tmp_path / "nowhere" / "loss.png")
