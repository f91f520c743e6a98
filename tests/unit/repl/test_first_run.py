"""What a first run tells: at most nine lines, and nothing that is not so."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shammah.chat.session import Notices
from shammah.models.catalogue import GIB, Machine
from shammah.repl.welcome import MARKER, FirstRun, welcome
from shammah.settings.model import CloudSettings, Settings
from shammah.terminal.text import fold
from tests.fakes.sandbox import LIMIT_S

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
    facts = welcome(settings, machine, here=here, offline=offline, cloud=asked)
    return "\n".join(line for lines in facts.values() for line in lines)


def test_the_model_why_and_how_much_comes() -> None:
    text = told()
    assert "Your local model is Qwen2.5-" in text
    assert "(for 8.0 GiB of memory)" in text
    assert "Downloading it (" in text
    assert " GB). Until it's done, a smaller model answers." in text
    assert "nothing you write leaves this machine" in text
    assert "/help" in text
    assert "Ctrl-D exits" in text


def test_what_is_here_does_not_come() -> None:
    assert "Downloading" not in told(here=True)
    assert "Downloading" not in told(model="starter", here=True)


def test_what_it_costs_and_how_to_change_that() -> None:
    text = told(machine=Machine(16 * GIB))
    assert "Downloading it (6.2 GB)" in text
    assert "Its licence (qwen-research) forbids commercial use." in text
    assert "To stop: `shammah models pull --cancel Qwen/Qwen2.5-3B-Instruct`." in text
    assert "`shammah models use 1.5B`, or `starter` for no download" in text
    assert "To stop" not in told(machine=Machine(16 * GIB), offline=True)
    assert "licence" not in told(machine=Machine(6 * GIB))
    text = told(key="k")
    assert (
        "cost money. To limit that to $1 a day: `shammah config set cloud.daily_budget 1`." in text
    )
    assert "To be asked each time: `shammah config set cloud.use ask`." in text
    assert "money" not in told()


def test_who_answers_meanwhile() -> None:
    assert "Until it's done, Claude answers, or a smaller model if private." in told(key="k")
    assert "Until it's done, questions wait" in told(model="1.5B")
    assert "Until it is downloaded, a smaller model" in told(offline=True)
    assert "the small starter: 1.0 GiB of memory is too little" in told(machine=SMALL, here=True)


def test_what_the_model_was_chosen_for() -> None:
    assert "(for a GPU of 80 GiB)" in told(machine=replace(MIDDLE, gpu_memory=80 * GIB))
    assert "(for 8.0 GiB of memory)" in told(machine=replace(MIDDLE, gpu_memory=2 * GIB))


def test_what_leaves_the_machine() -> None:
    assert "they leave this machine and cost money" in told(key="k")
    assert "if you agree" in told(key="k", use="ask")
    assert "Claude is switched off, so nothing" in told(key="k", use="never")
    assert "Claude is switched off, so nothing" in told(key="k", cloud=False)


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
        assert len(fold(text, 80).splitlines()) <= 9
        assert "planted-key" not in text


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "new"


def test_it_is_shown_once(home: Path) -> None:
    def begin() -> Notices:
        notices = Notices()
        environ = {"HF_HUB_CACHE": str(home)}
        first = FirstRun(Settings(home), environ, local_only=False, put=notices.put)
        first.start()
        first.settle(LIMIT_S)
        return notices

    one, other = begin(), begin()
    assert one.take()
    assert other.take() == one.take() == []
    assert (home / MARKER).exists()
    assert begin().take() == []


def test_what_has_changed_is_told_again(home: Path) -> None:
    def take(**changes: Any) -> list[str]:
        notices = Notices()
        settings = replace(Settings(home, "starter"), **changes)
        first = FirstRun(settings, {}, local_only=False, put=notices.put)
        first.start()
        first.settle(LIMIT_S)
        return notices.take()

    assert take()[0].startswith("Welcome. Your local model is starter")
    assert take() == []
    lines = take(cloud=CloudSettings(api_key="k"))
    assert "cost money" in lines[0]
    assert "Welcome" not in "".join(lines)
    assert take(cloud=CloudSettings(api_key="k")) == take() == []
    (line,) = take(model="/models/own")
    assert "own" in line


def test_what_is_found_out_too_late_is_not_told(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = threading.Event()

    def look_late(environ: object) -> Machine:
        seen.wait(LIMIT_S)
        return MIDDLE

    monkeypatch.setattr("shammah.repl.welcome.look", look_late)
    notices, found = Notices(), threading.Event()
    notices.on_put = found.set
    first = FirstRun(Settings(home), {}, local_only=False, put=notices.put)
    first.start()
    first.settle(0.0)
    seen.set()
    assert found.wait(LIMIT_S)
    assert notices.take() == []
    assert not (home / MARKER).exists()


def test_where_nothing_can_be_remembered_nothing_is_shown(home: Path) -> None:
    home.write_text("a file")
    notices = Notices()
    first = FirstRun(Settings(home), {"HF_HUB_CACHE": "/"}, local_only=True, put=notices.put)
    first.start()
    first.settle(LIMIT_S)
    assert notices.take() == []
