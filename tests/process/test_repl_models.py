"""Another model without another REPL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.command import WITH_STAND_INS
from tests.fakes.sandbox import Sandbox, until
from tests.fakes.terminal import Record, Terminal


@pytest.fixture
def terminal(record: Record, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """It starts stand-ins by itself, and has had an answer."""
    monkeypatch.setenv("STAND_IN", f"--record {record.path} --delay-ms 10")
    terminal = Terminal("--model", "starter", command=WITH_STAND_INS)
    terminal.wait_editor()
    terminal.ask("one")
    assert "local: starter" in terminal.wait_answer()
    yield terminal
    terminal.destroy()


@pytest.fixture
def other(sandbox: Sandbox) -> Path:
    """Another model, as far as anybody looks who only repeats what he was told. Its path is short:
    a long one goes on a line of its own."""
    directory = sandbox.root / "other"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    return directory


def test_another_model_goes_on_with_the_conversation(
    terminal: Terminal, record: Record, sandbox: Sandbox, other: Path
) -> None:
    before = sandbox.holder()
    terminal.ask(f"/model {other}")
    terminal.expect("Switching to other; your conversation continues")
    terminal.ask("two")
    assert f"local: {other}" in terminal.wait_answer()
    assert sandbox.holder() not in (None, before)
    assert [content for _, content in record.conversations[-1]] == ["one", "one", "two"]


def test_one_that_another_terminal_uses_is_ended_only_if_that_is_said(
    terminal: Terminal, connect: Callable[..., object], sandbox: Sandbox, other: Path
) -> None:
    connect(program="repl")
    before = sandbox.holder()
    terminal.ask(f"/model {other}")
    terminal.expect("Another terminal uses the local model, starter")
    terminal.ask("again")
    assert "local: starter" in terminal.wait_answer()
    assert sandbox.holder() == before
    terminal.ask(f"/model! {other}")
    terminal.expect("Switching to other")
    terminal.ask("and again")
    assert f"local: {other}" in terminal.wait_answer()


def test_without_a_name_it_tells_the_present_one(terminal: Terminal) -> None:
    terminal.ask("/model")
    terminal.expect("starter: Ready: starter")


def test_a_name_that_means_nothing_changes_nothing(terminal: Terminal, sandbox: Sandbox) -> None:
    before = sandbox.holder()
    terminal.ask("/model nonsense")
    terminal.expect("There is no model 'nonsense'")
    terminal.ask("again")
    assert "local: starter" in terminal.wait_answer()
    assert sandbox.holder() == before


def test_unload_gives_the_memory_back_and_a_question_loads_again(
    terminal: Terminal, sandbox: Sandbox
) -> None:
    terminal.ask("/unload")
    terminal.expect("Unloaded the local model")
    until(lambda: sandbox.holder() is None, "the worker has ended")
    terminal.ask("/unload")
    terminal.expect("No local model is loaded")
    terminal.ask("hello")
    assert "local: starter" in terminal.wait_answer()


def test_load_brings_it_back_before_the_question(terminal: Terminal, sandbox: Sandbox) -> None:
    terminal.ask("/unload")
    terminal.expect("Unloaded the local model")
    terminal.ask("/load")
    until(lambda: sandbox.holder() is not None, "a worker is there again")


def test_what_another_terminal_uses_stays(
    terminal: Terminal, connect: Callable[..., object], sandbox: Sandbox
) -> None:
    connect(program="repl")
    terminal.ask("/unload")
    terminal.expect("Not unloaded: another terminal uses it")
    assert sandbox.holder() is not None
