"""What a frontend keeps, and that a session goes on when it cannot."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from shammah.bus.messages import Done, Failed, Provenance, Timings, Usage
from shammah.chat.conversation import Conversation, Turn
from shammah.errors import ShammahError
from shammah.history import recorder as recorder_module
from shammah.history.listing import recap
from shammah.history.record import BUSY_S, StoredConversation, facts_of, turn_of
from shammah.history.recorder import CLOSE_S, KEEP_S, Recorder, history_of
from shammah.history.resuming import read_conversation, resume_conversation
from shammah.history.store import Store
from shammah.privacy.gate import Gate
from shammah.router.decision import Reason, RouteDecision, Target
from shammah.settings.load import load_settings
from tests.fakes.sandbox import Sandbox
from tests.fakes.stored import stored_turn

Open = Callable[..., Recorder]

BY = Provenance("inference", "small")
DONE = Done("r", "stop", Usage(3, 2), Timings(0.5), BY)


@pytest.fixture
def path(sandbox: Sandbox) -> Path:
    return sandbox.shammah_home / "history.db"


@pytest.fixture
def complaints() -> list[str]:
    return []


@pytest.fixture
def open_recorder(path: Path, complaints: list[str]) -> Iterator[Open]:
    opened: list[Recorder] = []

    def make(*, enabled: bool = True) -> Recorder:
        opened.append(Recorder(path, enabled=enabled, report=complaints.append))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def turn(key: str, question: str = "", **facts: object) -> Turn:
    return stored_turn(key, float(len(key)), question or key, f"answer {key}", **facts)


TALK = Conversation("Be brief.")


def said(key: str) -> Turn:
    return Turn(key, f"answer {key}", end=DONE, at=float(len(key)), key=key)


def keep(recorder: Recorder, *keys: str) -> None:
    for key in keys:
        recorder.keep(said(key), TALK)


def kept(path: Path) -> list[tuple[int, list[str]]]:
    """Each conversation and the keys of its turns; those that were undone in brackets."""
    store = Store(path)
    found = []
    for number in store.numbers():
        talk = store.read(number)
        assert talk is not None
        keys = [f"({one.key})" if one.undone else one.key for one in talk.turns]
        found.append((number, keys))
    store.close()
    return found


class TestARecorder:
    def test_keeps_turns_as_they_come(self, open_recorder: Open, path: Path) -> None:
        recorder = open_recorder()
        assert not path.exists()
        keep(recorder, "a", "bb")
        assert kept(path) == [(1, ["a", "bb"])]
        recorder.leave()
        keep(recorder, "ccc")
        assert kept(path) == [(1, ["a", "bb"]), (2, ["ccc"])]

    def test_keeps_a_question_before_its_answer(self, open_recorder: Open, path: Path) -> None:
        recorder = open_recorder()
        recorder.begin(Turn("a", at=1.0, key="a"), TALK)
        assert recorder.settle()
        assert kept(path) == [(1, ["a"])]
        assert [one.finish for one in read_conversation(recorder, 1).turns] == ["left"]
        keep(recorder, "a")
        assert kept(path) == [(1, ["a"])]
        assert read_conversation(recorder, 1).turns == (turn_of(facts_of(said("a"))),)
        recorder.undo(said("a"))
        recorder.close()
        assert kept(path) == [(1, ["(a)"])]

    def test_says_what_it_could_not_keep_each_time(
        self, open_recorder: Open, path: Path, complaints: list[str]
    ) -> None:
        recorder = open_recorder()
        for key in ("a", "bb"):
            path.mkdir()
            recorder.begin(said(key), TALK)
            assert not recorder.settle()
            keep(recorder, key)
            complaint = complaints.pop()
            assert complaint.startswith("This turn was not stored in the history. ")
            path.rmdir()
            keep(recorder, key + "c")
            assert complaints == []
            for file in path.parent.glob("history.db*"):
                file.unlink()

    def test_says_what_it_waits_for_and_what_comes_too_late(
        self,
        open_recorder: Open,
        path: Path,
        complaints: list[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        Store(path).open().close()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(recorder_module, "NOTICE_S", 0.01)
        monkeypatch.setattr(recorder_module, "KEEP_S", 0.01)
        recorder = open_recorder()
        waits: list[str] = []
        recorder.on_wait = waits.append
        keep(recorder, "a")
        assert waits == [recorder_module.WAITING]
        assert complaints == [recorder_module.NOT_STORED]
        other.execute("ROLLBACK")
        other.close()
        recorder.close()
        assert kept(path) == [(1, ["a"])]

    def test_marks_what_is_undone(self, open_recorder: Open, path: Path) -> None:
        recorder = open_recorder()
        keep(recorder, "a", "bb")
        recorder.undo(said("bb"))
        keep(recorder, "ccc")
        recorder.close()
        assert kept(path) == [(1, ["a", "(bb)", "ccc"])]

    def test_goes_on_with_a_conversation(self, open_recorder: Open, path: Path) -> None:
        keep(open_recorder(), "a", "bb")
        keep(open_recorder(), "ccc")
        later = open_recorder()
        later.resume(read_conversation(later, 1))
        later.undo(said("bb"))
        keep(later, "dddd")
        later.close()
        assert kept(path) == [(1, ["a", "(bb)", "dddd"]), (2, ["ccc"])]

    def test_keeps_a_conversation_from_elsewhere_once_it_goes_on(
        self, open_recorder: Open, path: Path
    ) -> None:
        recorder = open_recorder()
        recorder.resume(StoredConversation(0, "Be kind.", turns=(turn("a"), turn("bb"))))
        recorder.undo(said("bb"))
        recorder.prepare()
        keep(recorder, "ccc")
        recorder.close()
        assert kept(path) == [(1, ["a", "(bb)", "ccc"])]

    def test_keeps_no_conversation_from_elsewhere_that_does_not_go_on(
        self, open_recorder: Open, path: Path
    ) -> None:
        recorder = open_recorder()
        recorder.resume(StoredConversation(0, turns=(turn("a"),)))
        recorder.prepare()
        recorder.close()
        assert kept(path) == []

    def test_that_is_switched_off_writes_nothing(self, open_recorder: Open, path: Path) -> None:
        recorder = open_recorder(enabled=False)
        recorder.prepare()
        keep(recorder, "a")
        recorder.undo(said("a"))
        with pytest.raises(ShammahError, match="The history is empty"):
            read_conversation(recorder, 0)
        recorder.close()
        assert not list(path.parent.glob("history*"))

    @pytest.mark.parametrize("another", [True, False])
    def test_that_cannot_write_says_so_once_and_tries_again(
        self, open_recorder: Open, path: Path, complaints: list[str], another: bool
    ) -> None:
        path.mkdir()
        recorder = open_recorder()
        keep(recorder, "a", "bb")
        (complaint,) = complaints
        assert str(path) in complaint
        path.rmdir()
        if another:
            keep(recorder, "ccc")
        recorder.close()
        assert kept(path) == [(1, ["a", "bb", "ccc"][: 2 + another])]

    def test_goes_on_after_damage(
        self, open_recorder: Open, path: Path, complaints: list[str]
    ) -> None:
        path.write_bytes(b"no database " * 100)
        recorder = open_recorder()
        keep(recorder, "a")
        assert len(complaints) == 1
        assert kept(path) == [(1, ["a"])]

    def test_leaves_a_file_of_a_newer_version_alone(
        self, open_recorder: Open, path: Path, complaints: list[str]
    ) -> None:
        Store(path).open().close()
        database = sqlite3.connect(path)
        database.execute("PRAGMA user_version = 99")
        database.close()
        before = path.read_bytes()
        recorder = open_recorder()
        keep(recorder, "a", "bb")
        (complaint,) = complaints
        assert "newer Shammah" in complaint
        assert path.read_bytes() == before


def test_there_is_no_such_conversation(open_recorder: Open) -> None:
    recorder = open_recorder()
    keep(recorder, "a")
    with pytest.raises(ShammahError, match="no conversation 7"):
        read_conversation(recorder, 7)
    assert read_conversation(recorder, 0).number == 1


@pytest.mark.parametrize(
    ("environ", "flag", "enabled"),
    [({}, True, True), ({}, False, False), ({"SHAMMAH_HISTORY": "off"}, True, False)],
)
def test_the_setting_and_the_flag(environ: dict[str, str], flag: bool, enabled: bool) -> None:
    settings = load_settings({**os.environ, **environ})
    history = history_of(settings, enabled=flag, report=print)
    assert history.enabled == enabled


class TestTakingUp:
    def gate(self, home: Path, rules: str = "") -> Gate:
        (home / "config.toml").write_text(rules)
        return Gate(load_settings(os.environ), os.environ)

    def test_keeps_the_marks(self, sandbox: Sandbox) -> None:
        records = (turn("a"), turn("b", private=True), turn("c", target="cloud"), turn("d"))
        talk = Conversation()
        resume_conversation(
            StoredConversation(1, turns=records), talk, self.gate(sandbox.shammah_home), None
        )
        # d: a local model has seen b, and may repeat it.
        assert [turn.private for turn in talk.turns] == [False, True, False, True]

    def test_applies_the_rules_of_today(self, sandbox: Sandbox) -> None:
        gate = self.gate(sandbox.shammah_home, '[privacy]\nwords = ["walrus"]')
        talk = Conversation()
        kept = StoredConversation(1, "You are a walrus.", turns=(turn("a", "Walrus?"),))
        resume_conversation(kept, talk, gate, None)
        assert talk.system_private
        assert talk.turns[0].private

    def test_takes_the_system_prompt_that_was_asked_for(self, sandbox: Sandbox) -> None:
        gate, talk = self.gate(sandbox.shammah_home), Conversation("before")
        kept = StoredConversation(1, "Be brief.", system_private=True, turns=(turn("a"),))
        resume_conversation(kept, talk, gate, None)
        assert (talk.system, talk.system_private) == ("Be brief.", True)
        resume_conversation(kept, talk, gate, "Be kind.")
        assert (talk.system, talk.system_private, len(talk.turns)) == ("Be kind.", False, 1)

    def test_leaves_out_what_was_undone(self, sandbox: Sandbox) -> None:
        gone = turn("b", undone=True)
        talk = Conversation()
        resume_conversation(
            StoredConversation(1, turns=(turn("a"), gone)),
            talk,
            self.gate(sandbox.shammah_home),
            None,
        )
        assert [turn.question for turn in talk.turns] == ["a"]


def test_the_end_of_an_answer_waits_longer_than_its_writer() -> None:
    assert KEEP_S > 2 * BUSY_S  # with the question, and with the turn
    assert CLOSE_S > BUSY_S


class TestATurn:
    decision = RouteDecision(Target.LOCAL, Reason.MODEL_READY)

    def test_is_kept_with_who_answered_and_why(self) -> None:
        turn = Turn("q", "a", True, DONE, self.decision, at=5.0, key="k")
        assert facts_of(turn) == {
            "key": "k",
            "at": 5.0,
            "question": "q",
            "answer": "a",
            "finish": "stop",
            "target": "local",
            "reason": "model_ready",
            "model": "small",
            "complete": True,
            "private": True,
            "undone": False,
            "usage": asdict(Usage(3, 2)),
            "timings": asdict(Timings(0.5)),
            "provenance": asdict(BY),
            "client": "",
            "foreign": False,
        }

    @pytest.mark.parametrize(
        ("target", "reason", "foreign"),
        [
            (Target.LOCAL, Reason.MODEL_READY, False),
            (Target.LOCAL, Reason.CLOUD_FAILED, True),  # Claude may have begun it
            (Target.CLOUD, Reason.USER, True),
        ],
    )
    def test_of_before_is_foreign_where_that_is_possible(
        self, target: Target, reason: Reason, foreign: bool
    ) -> None:
        facts = facts_of(Turn("q", "a", False, DONE, RouteDecision(target, reason), at=5.0))
        facts.pop("foreign")
        assert turn_of(facts).foreign is foreign

    @pytest.mark.parametrize(
        "turn",
        [
            Turn("q", "a", False, DONE, decision),
            Turn("q", "a", True, replace(DONE, finish_reason="cancelled"), decision),
            Turn("q", "a", False, Failed("worker_died", "It died."), decision),
            Turn("q", "", False, Failed("cancelled", "Cancelled.")),
            Turn("q", "a", False, None, decision),
            Turn("q", "a", False, DONE, decision).correct("b", private=False),
        ],
    )
    def test_comes_back_as_it_was_kept(self, turn: Turn) -> None:
        back = turn_of(facts_of(turn))
        assert facts_of(back) == facts_of(turn)
        assert (back.whole, back.corrected) == (turn.whole, turn.corrected)

    def test_whose_model_alone_is_known_comes_back_with_it(self) -> None:
        back = turn("k", target="cloud", model="claude")
        assert back.provenance == Provenance("cloud", "claude")
        assert facts_of(back)["model"] == "claude"

    def test_that_was_corrected_comes_back_with_the_answer_before(self) -> None:
        first = Turn("q", "a", False, DONE, self.decision, at=1.0, key="a")
        stored = (replace(first, undone=True), first.correct("b", private=False))
        turns = tuple(turn_of(facts_of(one)) for one in stored)
        gate = Gate(load_settings(os.environ), os.environ)
        talk = Conversation()
        resume_conversation(StoredConversation(1, turns=turns), talk, gate, None)
        assert [(one.answer, one.given) for one in talk.turns] == [("b", "a")]


class TestARecap:
    talk = StoredConversation(1, turns=tuple(turn(f"turn {number}") for number in range(9)))

    def test_shows_the_end_as_far_as_there_is_room(self) -> None:
        lines = recap(self.talk, 80, 12)
        assert len(lines) == 9
        assert lines[0] == "…"
        assert lines[-3:-1] == ["> turn 8", "answer turn 8"]

    def test_shows_all_of_a_short_one(self) -> None:
        lines = recap(self.talk, 80, 100)
        assert lines[0] == "> turn 0"
        assert len(lines) == 27

    @pytest.mark.parametrize("wide", ["x" * 2000, "語" * 1000, "a\n" * 2000, "\x1b[2J"])
    @pytest.mark.parametrize(("columns", "rows"), [(200, 50), (40, 10), (1, 1)])
    def test_never_fills_more_than_the_screen(self, wide: str, columns: int, rows: int) -> None:
        lines = recap(
            StoredConversation(1, turns=(stored_turn("a", 0.0, wide, wide),)), columns, rows
        )
        cells = [sum(2 if c == "語" else 1 for c in line) for line in lines]
        assert sum(max(1, -(-cell // columns)) for cell in cells) <= max(3, rows - 3)
        assert "\x1b" not in "".join(lines)
