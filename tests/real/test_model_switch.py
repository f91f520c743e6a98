"""``/model NAME`` at the prompt: what works goes on until the other one does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.hub import StandInHub
from tests.fakes.sandbox import Sandbox
from tests.fakes.terminal import Terminal
from tests.real.local_hub import hubs, tiny_files

pytestmark = pytest.mark.timeout(600)

Serve = Callable[..., StandInHub]
TINY = "acme/tiny"
MODEL_DATA = 3_000_000


@pytest.fixture
def serve(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    with hubs(sandbox, monkeypatch) as start:
        yield start


@pytest.fixture
def terminal(serve: Serve, tmp_path: Path) -> Iterator[tuple[Terminal, StandInHub]]:
    """The starter has answered; a Hub serves another model, slowly."""
    directory = tmp_path / "served"
    directory.mkdir()
    hub = serve(tiny_files(directory, MODEL_DATA), rate=20_000.0)
    terminal = Terminal("--model", "starter")
    terminal.wait_editor()
    terminal.ask("hello")
    assert "local: starter" in terminal.wait_answer()
    terminal.wait_editor()
    yield terminal, hub
    terminal.destroy()


def test_the_one_before_answers_until_it_is_here(terminal: tuple[Terminal, StandInHub]) -> None:
    prompt, hub = terminal
    prompt.ask(f"/model {TINY}")
    prompt.expect("Downloading acme/tiny")
    prompt.wait_editor()
    prompt.ask("hello again")
    assert "local: starter" in prompt.wait_answer()
    hub.rate = None
    prompt.expect("Switching to tiny")
    prompt.expect(r"To\s+go\s+back:\s+/model\s+starter")
    prompt.expect(r"The local model \(tiny\) is ready, and has")


def test_one_that_cannot_be_had_changes_nothing(
    terminal: tuple[Terminal, StandInHub], sandbox: Sandbox
) -> None:
    prompt, hub = terminal
    before = sandbox.holder()
    prompt.ask("/model acme/unknown")
    prompt.expect(r"still\s+starter")
    hub.close()
    prompt.wait_editor()
    prompt.ask(f"/model {TINY}")
    prompt.expect(r"still\s+starter")
    prompt.wait_editor()
    prompt.ask("hello again")
    assert "local: starter" in prompt.wait_answer()
    assert sandbox.holder() == before


def test_one_that_cannot_be_loaded_gives_way_again(
    terminal: tuple[Terminal, StandInHub], tmp_path: Path
) -> None:
    prompt, _ = terminal
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    prompt.ask(f"/model {broken}")
    prompt.expect("Switching to broken")
    prompt.expect("Back to starter")
    prompt.wait_editor()
    prompt.ask("hello again")
    assert "local: starter" in prompt.wait_answer()


def test_a_download_that_is_not_wanted_any_more_switches_nothing(
    terminal: tuple[Terminal, StandInHub],
) -> None:
    prompt, hub = terminal
    prompt.ask(f"/model {TINY}")
    prompt.expect(r"/model\s+starter\s+keeps\s+it")
    prompt.wait_editor()
    prompt.ask("/model starter")
    prompt.expect(r"is\s+already\s+starter")
    prompt.wait_editor()
    hub.rate = None
    prompt.ask("hello again")
    assert "local: starter" in prompt.wait_answer()
