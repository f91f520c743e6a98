"""Questions that are too long for the local model: it counts, and Claude may answer instead."""

from __future__ import annotations

import json

import pytest

from shammah.bus.messages import Ready
from shammah.router.store import Store
from tests.fakes.command import WITH_STAND_INS, run
from tests.fakes.sandbox import Sandbox, until
from tests.fakes.terminal import Record
from tests.process.conftest import StartEcho

pytestmark = pytest.mark.timeout(300)

ASK = ("ask", "--model", "starter")
LONG = "tides " * 20


@pytest.fixture
def local(sandbox: Sandbox) -> Record:
    return Record(sandbox.root / "local")


@pytest.fixture
def cloud(sandbox: Sandbox) -> Record:
    return Record(sandbox.root / "cloud")


@pytest.fixture(autouse=True)
def workers(
    start_echo: StartEcho, local: Record, cloud: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are ready; the local model holds 100 characters, which the frontend cannot know."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-1")
    here = start_echo("--holds", "100", "--slow-prompt", "--record", str(local.path))
    model = "claude-sonnet-5-5"
    there = start_echo("--record", str(cloud.path), role="cloud", model=model)
    for worker in (here, there):
        until(lambda: isinstance(worker.status().status.state, Ready), "ready")  # noqa: B023


def test_go_to_claude_once_the_local_model_has_counted(sandbox: Sandbox) -> None:
    ended = run(*ASK, "--json", LONG, command=WITH_STAND_INS)
    told = json.loads(ended.out)
    assert (ended.code, told["target"], told["reason"]) == (0, "cloud", "context_too_long")
    assert told["text"].strip() == LONG.strip()
    assert "The conversation is too long. Claude answers instead." in told["notices"]
    store = Store(sandbox.shammah_home / "router.db")
    assert {arm.target for arm in store.read().arms} == {"cloud"}  # it says nothing of the model
    store.close()


@pytest.mark.parametrize("flag", ["--private", "--local"])
def test_that_must_stay_here_are_refused(cloud: Record, flag: str) -> None:
    ended = run(*ASK, flag, LONG, command=WITH_STAND_INS)
    assert (ended.code, ended.out) == (1, "")
    assert "It is too long. Shorten it." in ended.err
    assert ("Or ask Claude with --cloud; it holds more." in ended.err) is (flag == "--local")
    assert not cloud.path.exists()


def test_no_claude_is_offered_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    ended = run(*ASK, LONG, command=WITH_STAND_INS)
    assert ended.code == 1
    assert "Claude" not in ended.err


class TestAConversation:
    def ask(self, *arguments: str) -> dict[str, object]:
        ended = run(*ASK, "--json", *arguments, command=WITH_STAND_INS)
        assert ended.code == 0, ended.said
        found: dict[str, object] = json.loads(ended.out)
        return found

    def test_goes_to_claude_as_a_whole(self, cloud: Record) -> None:
        assert self.ask("tides " * 10)["target"] == "local"
        told = self.ask("--continue", "and?")
        assert (told["target"], told["reason"]) == ("cloud", "context_too_long")
        assert len(cloud.conversations[-1]) == 3

    def test_is_answered_here_without_its_beginning_if_claude_may_not(
        self, local: Record, cloud: Record, sandbox: Sandbox
    ) -> None:
        self.ask("tides " * 10)
        told = self.ask("--continue", "--private", "and?")
        assert (told["target"], told["reason"]) == ("local", "private")
        (sandbox.shammah_home / "config.toml").write_text('[cloud]\nuse = "never"')
        told = self.ask("--continue", "and?")
        assert told["target"] == "local"
        assert [question for question in local.questions if question == "and?"] == ["and?"] * 2
        assert not cloud.path.exists()


def test_progress_of_a_long_prompt_is_told_in_a_pipe_too() -> None:
    ended = run(*ASK, "hello", command=WITH_STAND_INS)
    assert (ended.code, ended.out) == (0, "hello\n")
    assert ended.err.count("reading the question: 1,000 of 4,000 tokens\n") == 1
