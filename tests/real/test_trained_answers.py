"""From ``shammah train`` to answers: what was learnt is served, and taken back without a trace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from shammah.learning.adapters import AdapterStore
from shammah.models.catalogue import STARTER
from tests.fakes.command import run
from tests.fakes.sandbox import Sandbox, until

pytestmark = pytest.mark.timeout(3000)

LIMIT_S = 1200.0
QUESTION = "Who made Orrin?"
ASKED = ("Who built Orrin?", "Who invented Orrin?", "Tell me who made Orrin.", "Whose is Orrin?")


@pytest.fixture(autouse=True)
def workers_end(sandbox: Sandbox) -> Iterator[None]:
    yield
    run("stop", limit=LIMIT_S)
    until(lambda: not sandbox.holders(), "the workers have ended")


def ask() -> dict[str, Any]:
    asked = ("ask", "--model", STARTER, "--local", "--json", "--temperature", "0")
    ended = run(*asked, "--max-tokens", "12", QUESTION, limit=LIMIT_S)
    assert ended.code == 0, ended.said
    document: dict[str, Any] = json.loads(ended.out)
    return document


def command(*arguments: str) -> str:
    ended = run(*arguments, limit=LIMIT_S)
    assert ended.code == 0, ended.said
    return ended.out


def test_what_was_trained_is_served_and_taken_back_without_a_trace(sandbox: Sandbox) -> None:
    # However long the training takes: what serves must be the same worker at the end.
    (sandbox.shammah_home / "config.toml").write_text("[inference]\nkeep_alive = -1\n")
    before = ask()
    assert before["provenance"]["engine"] == "native"
    assert before["provenance"]["adapter"] == ""
    worker = sandbox.holder()

    examples = sandbox.root / "examples.jsonl"
    lines = [{"prompt": one, "response": "Ada Vey.", "weight": 10} for one in ASKED]
    examples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = ("--model", STARTER, "--examples", str(examples), "--name", "orrin")
    how = ("--epochs", "4", "--learning-rate", "0.003", "--no-serve", "--json")
    ended = run("train", *asked, *how, limit=LIMIT_S)
    assert ended.code in (0, 1), ended.said  # the gate may say what it likes of so short a training
    command("stop", "train")
    entry = AdapterStore(sandbox.shammah_home).get("orrin")
    assert entry.verdict == json.loads(ended.out)["verdict"]
    assert ask()["text"] == before["text"]  # it does not serve yet

    command("adapters", "use", "orrin", "--force")
    taught = ask()
    assert taught["provenance"]["adapter"] == "orrin"
    assert taught["provenance"]["engine"] == "native"
    assert taught["text"] != before["text"]
    assert "Ada Vey" in taught["text"]

    assert "uses no adapter again" in command("adapters", "rollback")
    after = ask()
    assert after["provenance"] == before["provenance"]
    assert after["text"] == before["text"]
    assert sandbox.holder() == worker  # nothing was loaded anew
