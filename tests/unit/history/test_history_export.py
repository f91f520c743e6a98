"""Conversations as text: what is written can be read again, and nothing else can."""

from __future__ import annotations

import itertools
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shammah.bus.messages import Provenance, Timings, Usage
from shammah.chat.conversation import Turn
from shammah.errors import ShammahError
from shammah.history import export
from shammah.history.export import read, write
from shammah.history.record import StoredConversation
from tests.fakes.sandbox import Sandbox
from tests.fakes.stored import stored_turn

BY = Provenance("inference", "small", "abc", fallback=True)


def key() -> str:
    return "new"


def turn(question: str, answer: str, **facts: object) -> Turn:
    usage, timings = Usage(1, 2, 3, 0.25), Timings(0.5)
    return stored_turn(
        "new", 1000.25, question, answer, by=BY, usage=usage, timings=timings, **facts
    )


TEXTS = st.text(st.characters(codec="utf-8"))


@settings(max_examples=60)
@given(turns=st.lists(st.tuples(TEXTS, TEXTS, st.booleans()), max_size=3), system=TEXTS)
def test_what_was_written_is_read_again(turns: list[tuple[str, str, bool]], system: str) -> None:
    kept_turns = tuple(turn(asked, told, private=private) for asked, told, private in turns)
    kept = StoredConversation(7, system, True, 999.5, kept_turns)
    assert read(write(kept, "jsonl"), key) == replace(kept, number=0)


def test_turns_that_were_undone_are_in_json_alone() -> None:
    kept = StoredConversation(7, turns=(turn("a", "1"), turn("b", "2", undone=True)))
    assert len(read(write(kept, "jsonl"), key).turns) == 2
    assert write(kept, "markdown").count("## You") == 1


def test_each_turn_gets_a_key_of_its_own() -> None:
    kept = StoredConversation(7, turns=(turn("a", "1"), turn("b", "2")))
    numbers = itertools.count()
    again = read(write(kept, "jsonl"), lambda: str(next(numbers)))
    assert [one.key for one in again.turns] == ["0", "1"]


def test_markdown_is_questions_and_answers_and_nothing_else() -> None:
    first = turn("What are\ntides?", "The moon.", private=True)
    turns = (first, turn("And?", "", finish="timeout"), replace(first, undone=True))
    assert write(StoredConversation(7, "Be brief.", turns=turns), "markdown") == (
        "# What are tides?\n\n## You (private)\n\nWhat are\ntides?\n\n## small\n\nThe moon.\n\n"
        "## You\n\nAnd?\n\n## small (cut short)\n\n*No answer.*\n"
    )
    assert write(StoredConversation(7), "markdown") == "# A conversation\n"


GOOD = json.loads(write(StoredConversation(7, turns=(turn("a", "1"),)), "jsonl"))
TURN = GOOD["turns"][0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "# Notes\n\nnothing of ours\n",
        "{",
        "{}",
        "[" * 100_000,
        '{"a":' * 100_000,
        json.dumps({**GOOD, "format": "other"}),
        json.dumps({**GOOD, "version": 2}),
        json.dumps({**GOOD, "turns": 3}),
        json.dumps({**GOOD, "turns": ["a"]}),
        json.dumps({**GOOD, "system": None}),
        json.dumps({**GOOD, "turns": [{**TURN, "private": "no"}]}),
        json.dumps({**GOOD, "turns": [{name: TURN[name] for name in TURN if name != "private"}]}),
        json.dumps({**GOOD, "turns": [{**TURN, "at": 3}]}),
        json.dumps({**GOOD, "turns": [{**TURN, "usage": {"cost": "much"}}]}),
        write(StoredConversation(7), "jsonl") * 2,
        write(StoredConversation(7, turns=(turn("a", "1"),)), "markdown"),
    ],
)
def test_anything_else_is_refused_in_words(text: str) -> None:
    with pytest.raises(ShammahError) as refusal:
        read(text, key)
    assert refusal.value.code == "conversation_invalid"
    assert len(refusal.value.message) < 250


class TestFiles:
    def test_are_written_whole_for_their_owner_alone(self, sandbox: Sandbox) -> None:
        path = sandbox.root / "talk.md"
        assert export.write_file(path, ["one ", "two \udcff"], overwrite=False) == 2
        assert export.read_file(path) == "one two ?"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_have_no_byte_order_mark_in_their_text(self, sandbox: Sandbox) -> None:
        path = sandbox.root / "talk.md"
        path.write_text("\ufeffone", "utf-8")
        assert export.read_file(path) == "one"

    def test_that_exist_are_overwritten_only_when_that_is_said(self, sandbox: Sandbox) -> None:
        path = sandbox.root / "talk.md"
        path.write_text("old")
        with pytest.raises(ShammahError, match="exists"):
            export.write_file(path, ["new"], overwrite=False)
        assert path.read_text() == "old"
        export.write_file(path, ["new"], overwrite=True)
        assert path.read_text() == "new"

    def test_that_break_off_leave_what_was_there(self, sandbox: Sandbox) -> None:
        path = sandbox.root / "talk.md"
        path.write_text("old")

        def parts() -> list[str]:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            export.write_file(path, (part for _ in "a" for part in parts()), overwrite=True)
        assert path.read_text() == "old"
        assert [one.name for one in sandbox.root.glob("*talk*")] == ["talk.md"]

    @pytest.mark.parametrize("name", ["missing.md", ".", "a\0b.md", "binary.md", "big.md"])
    def test_that_cannot_be_read_are_refused(
        self, sandbox: Sandbox, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(export, "LARGEST", 10)
        (sandbox.root / "binary.md").write_bytes(b"\xff\xfe")
        (sandbox.root / "big.md").write_bytes(b"a" * 11)
        with pytest.raises(ShammahError) as refusal:
            export.read_file(sandbox.root / name)
        assert refusal.value.code == "file_unreadable"

    @pytest.mark.parametrize("name", ["missing/talk.md", "a\0b.md"])
    def test_that_cannot_be_written_are_refused(self, sandbox: Sandbox, name: str) -> None:
        with pytest.raises(ShammahError) as refusal:
            export.write_file(Path(os.path.join(sandbox.root, name)), ["a"], overwrite=False)
        assert refusal.value.code == "file_unwritable"

    def test_are_named_after_their_form(self) -> None:
        assert export.form_of(Path("a.MD")) == "markdown"
        assert export.form_of(Path("a.jsonl")) == "jsonl"
        with pytest.raises(ShammahError, match="neither"):
            export.form_of(Path("a.txt"))
