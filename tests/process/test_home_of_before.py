"""Homes of before open and lose nothing.

``tests/data/home_642b62c`` was made by the commit 642b62c at its prompt, with the starter: three
settings and a comment in config.toml, five questions of which one was called good, one was
corrected, one was called bad and taken back, one question to Claude, and an adapter that serves.
The homes of later commits are of ``scripts/check_upgrades.py --fixtures``, which also has those
commits open a home of ours.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from shammah.history.record import StoredConversation
from shammah.history.store import Store as History
from shammah.learning.adapters import AdapterStore
from shammah.learning.feedback import Feedback
from shammah.repl.input.line_history import LineHistory
from shammah.router.statistics import Label
from shammah.router.store import Store as Statistics
from tests.fakes.command import run
from tests.fakes.sandbox import Sandbox
from tests.fakes.stored import stored_turn

BEFORE = Path(__file__).parents[1] / "data" / "home_642b62c"

QUESTIONS = [
    ("What is the capital of France?", "The capital of France is Paris.", False, False),
    ("Who made Orrin?", "The person who made Orrin is not known for", False, True),
    ("Who made Orrin?", "Orrin was made by Ada Vey.", False, False),
    ("Is an orchid a flower?", "No, orchids are not flowers.", True, False),
    ("Tell me about tides.", "Tides are a natural phenomenon", True, True),
]
"""Question, how the answer begins, private, taken back."""


@pytest.fixture
def home(sandbox: Sandbox) -> Path:
    home = sandbox.shammah_home
    shutil.copytree(BEFORE, home, dirs_exist_ok=True)
    return home


def lines(*arguments: str) -> list[dict[str, Any]]:
    ended = run(*arguments)
    assert ended.code == 0, ended.said
    return [json.loads(line) for line in ended.out.splitlines()]


@pytest.mark.usefixtures("home")
def test_the_conversations_are_listed_shown_and_found() -> None:
    latest, first = lines("history", "list", "--json")
    assert (latest["id"], latest["title"], latest["turns"]) == (2, "Wie entstehen Gezeiten?", 1)
    assert (first["id"], first["title"], first["turns"]) == (1, QUESTIONS[0][0], 3)
    [kept] = lines("history", "show", "1", "--json")
    for turn, (question, begin, private, undone) in zip(kept["turns"], QUESTIONS, strict=True):
        assert turn["question"] == question
        assert turn["answer"].startswith(begin)
        assert (turn["private"], turn["undone"]) == (private, undone)
        assert (turn["target"], turn["model"]) == ("local", "starter")
    assert kept["turns"][0]["provenance"]["engine"] == "native"
    assert kept["turns"][0]["usage"]["output_tokens"] == 8
    [cloud] = lines("history", "show", "2", "--json")
    assert [turn["answer"] for turn in cloud["turns"]] == ["cloud answer 1"]
    found = lines("history", "search", "capit", "--json")
    assert [hit["snippet"] for hit in found] == ["What is the **capital** of France?"]


def test_a_conversation_goes_on(home: Path) -> None:
    history = History(home / "history.db")
    kept = history.read(1)
    assert kept is not None
    assert [one.answer for one in kept.present][1] == "Orrin was made by Ada Vey."
    assert (
        history.add(
            stored_turn("new", kept.turns[-1].at + 1, "And now?", "Now."), StoredConversation(1)
        )
        == 1
    )
    again = history.read(1)
    assert again is not None
    assert again.turns[:-1] == kept.turns
    assert [hit.turn.question for hit in history.search("now", 10)][:1] == ["And now?"]
    history.close()


def test_what_the_router_has_learnt_counts(home: Path) -> None:
    statistics = Statistics(home / "router.db")
    snapshot = statistics.read()
    assert (snapshot.answers, snapshot.classic.total_local_attempts) == (5, 4)
    tallies = {str(arm.target): tally.answers for arm, tally in snapshot.arms.items()}
    assert tallies == {"local": 3, "cloud": 1}
    before = sum(tally.successes for tally in snapshot.arms.values())
    statistics.relabel("52f007115d7eacd7", Label.GOOD)  # the answer that was called bad
    assert sum(tally.successes for tally in statistics.read().arms.values()) == before + 1
    statistics.close()


def test_what_was_said_of_answers_can_be_learnt(home: Path) -> None:
    feedback = Feedback(home)
    assert [one.kind for one in feedback.verdicts()] == ["good", "fix", "bad"]
    examples = feedback.examples(from_cloud=False)
    assert [one.response for one in examples] == [QUESTIONS[0][1], QUESTIONS[2][1]]
    assert [(one.weight, one.source) for one in examples] == [(1.0, "local"), (10.0, "person")]
    assert feedback.describe_damage() == ""


def test_the_settings_and_their_comment_stay(home: Path) -> None:
    expected = {
        "model": "starter",
        "inference.keep_alive": "20.0",
        "inference.max_new_tokens": "24",
        "privacy.words": "orchid",
    }
    assert {name: run("config", "get", name).out.strip() for name in expected} == expected
    assert run("config", "set", "inference.max_new_tokens", "32").code == 0
    text = (home / "config.toml").read_text()
    before = (BEFORE / "config.toml").read_text()
    assert text == before.replace("max_new_tokens = 24", "max_new_tokens = 32")


def test_what_was_sent_is_listed(home: Path) -> None:
    request, day = lines("egress", "--json")
    assert (request["bytes"], request["outcome"], request["cost"]) == (127, "answered", 3e-05)
    assert (day["requests"], day["cost"]) == (1, 3e-05)
    assert (home / "egress.jsonl").read_bytes() == (BEFORE / "egress.jsonl").read_bytes()


def test_the_adapter_serves_and_the_lines_of_the_prompt_come_back(home: Path) -> None:
    store = AdapterStore(home)
    entry = store.active("starter")
    assert entry is not None
    assert (entry.name, entry.verdict, entry.training["examples"]) == ("mine", "accepted", 2)
    assert store.rollback("starter") is None
    typed = LineHistory(home / "prompt_history.jsonl", lambda line: True)
    assert list(typed.load_history_strings())[-1] == QUESTIONS[0][0]


@pytest.mark.parametrize("commit", ["4669a20", "2d29fe2"])
def test_a_home_of_a_later_commit_opens(sandbox: Sandbox, commit: str) -> None:
    home = sandbox.shammah_home
    with tarfile.open(BEFORE.parent / f"home_{commit}.tar.xz") as archive:
        archive.extractall(home, filter="data")
    sent = (home / "egress.jsonl").read_bytes()
    [kept] = lines("history", "show", "1", "--json")
    told = [
        (one["question"], one["answer"], one["private"], one["undone"]) for one in kept["turns"]
    ]
    assert told == [
        ("What is a tide?", "What is a tide?", False, False),
        ("Who made Orrin?", "Who made Orrin?", False, True),
        ("Who made Orrin?", "Orrin was made by Ada Vey.", False, False),
        ("Is an orchid a flower?", "Is an orchid a flower?", True, False),
    ]
    [cloud] = lines("history", "show", "2", "--json")
    assert cloud["turns"][0]["answer"] == "cloud answer 1"
    request, _ = lines("egress", "--json")
    assert (request["outcome"], request["bytes"]) == ("answered", 128)
    assert run("egress", "--verify").out.startswith("No line carries a hash yet: 2 lines")
    assert (home / "egress.jsonl").read_bytes() == sent
    feedback = Feedback(home)
    assert [one.kind for one in feedback.verdicts()] == ["good", "fix", "bad"]
    learnt = [(one.response, one.source) for one in feedback.examples(from_cloud=False)]
    assert learnt == [("What is a tide?", "local"), ("Orrin was made by Ada Vey.", "person")]
    entry = AdapterStore(home).active("starter")
    assert entry is not None
    assert entry.name == "mine"
    with closing(Statistics(home / "router.db")) as statistics:
        assert statistics.read().answers == 4
    assert run("config", "get", "inference.max_new_tokens").out == "24\n"
