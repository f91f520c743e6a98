"""What a first run tells: at most five lines, and nothing that is not so."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from shammah.config import CloudSettings, Settings
from shammah.first_run import MARKER, FirstRun, welcome
from shammah.models import GIB, Machine
from tests.standins.sandbox import until

SMALL, MIDDLE = Machine(GIB), Machine(8 * GIB + 2**20)


def told(
    model: str = "auto",
    use: str = "auto",
    key: str = "",
    machine: Machine = MIDDLE,
    *,
    here: bool = False,
    offline: bool = False,
    cloud: bool | None = None,
) -> str:
    settings = Settings(Path("/h"), model=model, cloud=CloudSettings(use=use, api_key=key))
    asked = settings.cloud_configured if cloud is None else cloud
    return "\n".join(welcome(settings, machine, here=here, offline=offline, cloud=asked))


def test_the_model_why_and_how_much_comes() -> None:
    text = told()
    assert "Your local model is Qwen2.5-" in text
    assert "(for 8.0 GiB of memory)" in text
    assert " GB); until then" in text
    assert "until then a small starter model answers" in text
    assert "nothing that you write leaves this machine" in text
    assert "/help" in text
    assert "Ctrl-D leaves" in text


def test_what_is_here_does_not_come() -> None:
    assert "come" not in told(here=True).replace("Welcome", "")
    assert "background" not in told(model="starter", here=True)


def test_who_answers_meanwhile() -> None:
    assert "until then Claude answers" in told(key="k")
    assert "until then questions wait" in told(model="1.5B")
    assert "Until it is here a small starter" in told(offline=True)
    assert "hold no more than the starter" in told(machine=SMALL, here=True)


def test_what_the_model_was_chosen_for() -> None:
    assert "(for a GPU of 80 GiB)" in told(machine=replace(MIDDLE, gpu_memory=80 * GIB))
    assert "(for 8.0 GiB of memory)" in told(machine=replace(MIDDLE, gpu_memory=2 * GIB))


def test_what_leaves_the_machine() -> None:
    assert "that leaves this machine" in told(key="k")
    assert "after you agree" in told(key="k", use="ask")
    assert "Claude is not asked: nothing" in told(key="k", use="never")
    assert "Claude is not asked: nothing" in told(key="k", cloud=False)


def test_it_is_short_whatever_there_is() -> None:
    for model, use, key, machine, here, offline in itertools.product(
        ("auto", "starter", "7B", "/models/own"),
        ("auto", "ask", "never"),
        ("", "planted-key"),
        (SMALL, MIDDLE, replace(MIDDLE, gpu_memory=80 * GIB)),
        (True, False),
        (True, False),
    ):
        text = told(model, use, key, machine, here=here, offline=offline)
        lines = text.splitlines()
        assert len(lines) <= 5
        assert all(len(line) <= 80 for line in lines)
        assert "planted-key" not in text


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "new"


def test_it_is_shown_once(home: Path) -> None:
    found: list[None] = []

    def begin() -> FirstRun:
        first = FirstRun(
            Settings(home), {"HF_HUB_CACHE": str(home)}, local_only=False,
            on_found=lambda: found.append(None),
        )  # fmt: skip
        first.start()
        return first

    one, other = begin(), begin()
    until(lambda: len(found) == 2, "both have found out")
    assert one.take()
    assert other.take() == one.take() == []
    assert (home / MARKER).exists()
    again = begin()
    assert again.take() == []
    assert len(found) == 2


def test_where_nothing_can_be_remembered_nothing_is_shown(home: Path) -> None:
    home.write_text("a file")
    found: list[None] = []
    first = FirstRun(
        Settings(home), {"HF_HUB_CACHE": "/"}, local_only=True, on_found=lambda: found.append(None)
    )
    first.start()
    until(lambda: found, "it has found out")
    assert first.take() == []
