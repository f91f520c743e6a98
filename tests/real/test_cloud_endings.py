"""``shammah ask`` and the cloud worker, as they are, with a server whose answers end in other ways
than most do: what is told, the exit status, and what the history has of it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.fakes.command import run
from tests.fakes.sandbox import Sandbox, until
from tests.real.recorder import Recorder

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def recorder(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    server = Recorder(sandbox)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    yield server
    run("stop")
    until(lambda: not sandbox.holders(), "no worker is left")
    server.close()


@pytest.mark.parametrize(
    ("ending", "status", "answer", "finish", "told"),
    [
        ("nothing", 1, "", "stop", "Claude returned no text."),
        ("decline", 1, "", "refusal", "Claude refused to answer."),
        ("cut at once", 1, "", "length", "Claude reached the limit of 2 tokens"),
        ("cut", 0, "half an", "length", "cut at the length limit"),
        ("pause", 0, "so far", "other", "unknown reason (pause_turn)"),
        ("pause at once", 1, "", "other", "unknown reason (pause_turn)"),
    ],
)
def test_an_answer_that_ends_otherwise(
    recorder: Recorder, ending: str, status: int, answer: str, finish: str, told: str
) -> None:
    recorder.behaviours = [ending, ending]
    ended = run("ask", "--cloud", "--model", "starter", "Which tide?")
    assert (ended.code, ended.out.strip()) == (status, answer)
    assert told in ended.err
    kept = json.loads(run("history", "show", "1", "--json").out)
    (turn,) = kept["turns"]
    assert (turn["question"], turn["answer"], turn["finish"]) == ("Which tide?", answer, finish)
    again = run("ask", "--cloud", "--model", "starter", "--json", "--continue", "And now?")
    assert again.code == status
    document = json.loads(again.out)
    assert document["text"] == answer
    if status:
        assert told in document["error"]["message"]
    else:
        assert document["finish_reason"] == finish
    assert len(recorder.bodies) == 2
