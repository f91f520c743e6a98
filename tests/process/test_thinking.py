"""Models that think before they answer, as a person at a terminal and a pipe see them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from shammah.bus.messages import Ready
from tests.fakes.command import run
from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import Sandbox, until
from tests.fakes.screen import Picture
from tests.fakes.terminal import Record, Terminal

pytestmark = pytest.mark.timeout(300)

StartEcho = Callable[..., EchoProcess]

THOUGHTS = "\nLet me see.| Tides come| from the moon.\n"
ASK = ("ask", "--model", "starter")
DIM = "\x1b[2m"


@pytest.fixture(autouse=True)
def thinker(start_echo: StartEcho, record: Record) -> None:
    """A worker whose model thinks if it is asked to."""
    options = ("--thoughts", THOUGHTS, "--record", str(record.path), "--delay-ms", "20")
    worker = start_echo(*options)
    until(lambda: isinstance(worker.status().status.state, Ready), "ready")


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    one = Terminal("--model", "starter")
    one.wait_editor()
    yield one
    one.destroy()


def answered(terminal: Terminal, question: str) -> str:
    terminal.ask(question)
    seen = terminal.expect("asking local") + terminal.wait_answer()
    terminal.wait_editor()
    return seen


def told(terminal: Terminal, command: str, sentence: str) -> None:
    terminal.ask(command)
    terminal.expect(sentence)
    terminal.wait_editor()


def test_thoughts_are_asked_for_and_shown_dimmed_before_the_answer(
    terminal: Terminal, record: Record
) -> None:
    assert "moon" not in answered(terminal, "what are tides?")  # they are off by default
    told(terminal, "/think show", "you see its thoughts")
    seen = answered(terminal, "and what are waves?")
    picture = Picture()
    picture.write(seen)
    lines = [line for line in picture.text.split("\n") if line]
    begins = lines.index("Thoughts:")
    assert lines[begins : begins + 3] == [
        "Thoughts:",
        "Let me see. Tides come from the moon.",
        "and what are waves?",
    ]
    thoughts, _, answer = seen.partition("from the moon.")
    assert DIM in thoughts[thoughts.rindex("Let") - 8 :]
    assert DIM not in answer[: answer.index("waves?")]
    answered(terminal, "thank you")
    assert record.conversations[-1] == [
        ("user", "what are tides?"),
        ("assistant", "what are tides?"),
        ("user", "and what are waves?"),
        ("assistant", "and what are waves?"),
        ("user", "thank you"),
    ]


def test_thoughts_that_are_not_shown_are_counted(terminal: Terminal) -> None:
    told(terminal, "/think on", "You see only how long")
    seen = answered(terminal, "what are tides?")
    assert "thinking ... 3 tokens" in seen
    assert "moon" not in seen
    told(terminal, "/think", "You see only how long")
    told(terminal, "/config", r'inference.think = "on"   \(--think or /think\)')
    told(terminal, "/think off", "without thinking first")
    assert "thinking" not in answered(terminal, "what are waves?")
    told(terminal, "/think aloud", "/think takes off, on or show, not 'aloud'")


def test_in_a_pipe_thoughts_go_to_stderr(sandbox: Sandbox) -> None:
    ended = run(*ASK, "--think", "show", "what are tides?")
    assert (ended.code, ended.out) == (0, "what are tides?\n")
    assert "Thoughts:\nLet me see. Tides come from the moon.\n" in ended.err
    for mode in ("on", "off"):
        ended = run(*ASK, "--think", mode, "what are tides?")
        assert (ended.code, ended.out, "moon" in ended.err) == (0, "what are tides?\n", False)
    (sandbox.shammah_home / "config.toml").write_text('[inference]\nthink = "show"\n')
    assert "moon" in run(*ASK, "what are tides?").err
    assert "moon" not in run(*ASK, "--think=off", "what are tides?").err


def test_an_object_has_thoughts_of_their_own_where_they_are_wanted() -> None:
    shown = json.loads(run(*ASK, "--json", "--think", "show", "what are tides?").out)
    assert shown["text"] == "what are tides?"
    assert shown["thoughts"] == THOUGHTS.replace("|", "")
    assert "thoughts" not in json.loads(run(*ASK, "--json", "--think", "on", "tides?").out)


def test_a_mode_that_is_none_is_refused() -> None:
    ended = run(*ASK, "--think", "aloud", "what are tides?")
    assert ended.code == 2
    assert "'aloud' is not one of 'off', 'on', 'show'" in ended.err
