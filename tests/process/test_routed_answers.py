"""What the router learns and says, as whole programs show it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from shammah.bus.messages import ChatMessage, Done, Ready
from shammah.chat.conversation import Notice
from shammah.chat.session import FIXED_TEXT, Session
from shammah.router.decision import Override, Reason, Target
from shammah.router.route import RouteDecision
from shammah.router.statistics import Snapshot
from shammah.router.store import Store
from shammah.settings.load import load_settings
from tests.fakes.command import WITH_STAND_INS, Ran, run
from tests.fakes.sandbox import Sandbox, until
from tests.fakes.turns import way_of
from tests.process.conftest import StartEcho

pytestmark = pytest.mark.timeout(300)

CRISIS = "I want to kill myself"


@pytest.fixture
def path(sandbox: Sandbox) -> Path:
    return sandbox.shammah_home / "router.db"


@pytest.fixture(autouse=True)
def workers(start_echo: StartEcho, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are ready, and the locale is American."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-1")
    monkeypatch.setenv("LANG", "en_US.UTF-8")
    monkeypatch.delenv("LC_ALL", raising=False)
    for worker in (start_echo(), start_echo(role="cloud", model="claude-sonnet-5-5")):
        until(lambda: isinstance(worker.status().status.state, Ready), "ready")  # noqa: B023


def ask(*arguments: str) -> tuple[Ran, dict[str, object]]:
    ended = run("ask", "--model", "starter", "--json", *arguments, command=WITH_STAND_INS)
    return ended, json.loads(ended.out)


def learnt(path: Path) -> Snapshot:
    store = Store(path)
    try:
        return store.read()
    finally:
        store.close()


def test_an_answer_leaves_a_row_behind(path: Path) -> None:
    ended, _ = ask("--local", "explain tides")
    assert ended.code == 0
    ((arm, tally),) = learnt(path).arms.items()
    assert (arm.category, arm.target, arm.model) == ("explanation", "local", "starter")
    assert tally.answers == 1


def test_json_tells_the_alternatives() -> None:
    _, answer = ask("--local", "explain tides")
    told = (answer["target"], answer["reason"], answer["category"])
    assert told == ("local", "user", "explanation")
    local, cloud = answer["alternatives"]  # type: ignore[misc]
    assert (local["target"], local["model"], local["cost"]) == ("local", "starter", 0.0)
    assert 0 < local["quality_at_least"] < local["quality"] < 1
    assert (cloud["target"], cloud["cost"], cloud["ttft_s"]) == ("cloud", None, None)
    assert cloud["obstacle"] == "no_cloud"  # with --local no key is even looked at


def test_json_tells_the_alternatives_of_a_failure() -> None:
    ended, answer = ask("fail as planned")
    assert ended.code == 1
    assert answer["error"]["code"] == "planted"  # type: ignore[index]
    assert [one["target"] for one in answer["alternatives"]] == ["local", "cloud"]  # type: ignore


def test_somebody_in_danger_reads_whom_to_call_before_the_answer(path: Path) -> None:
    ended = run("ask", "--model", "starter", CRISIS, command=WITH_STAND_INS)
    assert ended.code == 0
    assert "988" in ended.err
    assert ended.err.index("988") < ended.err.index("someone may be in danger")
    assert "cloud: " in ended.err
    assert learnt(path).answers == 0


def test_in_private_the_help_is_shown_and_the_cloud_is_not_asked() -> None:
    ended, answer = ask("--private", CRISIS)
    assert (answer["target"], answer["model"]) == ("local", FIXED_TEXT)
    assert "988" in str(answer["notices"])
    assert "988" in ended.err


def test_the_fallback_model_answers_nobody_in_danger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever would be asked instead: nobody, a cloud that fails, a worker that does."""
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    for words in (CRISIS, f"fail as planned. {CRISIS}"):
        ended, answer = ask(words)
        assert ended.code == 0
        assert (answer["target"], answer["reason"]) == ("local", "crisis")
        assert answer["model"] == FIXED_TEXT
        assert "You don't have to face it alone" in str(answer["text"])
        assert words not in str(answer["text"])
        assert "988" in str(answer["notices"])


def test_a_damaged_file_is_put_aside_and_stops_no_answer(path: Path) -> None:
    path.write_bytes(b"not a database, " * 100)
    ended, answer = ask("--local", "explain tides")
    assert ended.code == 0
    assert answer["text"] == "explain tides"
    assert ended.err.count(str(path)) <= 1  # it may answer before the file is read
    kept = [file.read_bytes() for file in path.parent.glob("router.db*")]
    assert b"not a database, " * 100 in kept


def test_who_says_no_to_the_cloud_in_danger_is_answered_here(sandbox: Sandbox) -> None:
    (sandbox.shammah_home / "config.toml").write_text('[cloud]\nuse = "ask"\n')
    # The stand-in for the cloud was started with other settings; it must not even be needed.
    session = Session(load_settings(os.environ, "starter"), os.environ, "test")
    asked: list[str] = []

    def refuse(question: str) -> str:
        asked.append(question)
        return "n"

    session.gate.ask = refuse
    try:
        steps = list(way_of(session, (ChatMessage("user", CRISIS),), Override()))
    finally:
        session.close()
    (routed,) = (step for step in steps if isinstance(step, RouteDecision))
    assert (routed.target, routed.reason) == (Target.LOCAL, Reason.CRISIS)
    assert len(asked) == 1
    assert isinstance(steps[-1], Done)
    assert isinstance(steps[0], Notice)
    assert "988" in steps[0].text
