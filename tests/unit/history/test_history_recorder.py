"""What a frontend keeps, and that a session goes on when it cannot."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shammah.bus.messages import Done, Failed, Provenance, Timings, Token, Usage
from shammah.chat.answering import Answering
from shammah.chat.conversation import Conversation
from shammah.chat.record import BUSY_S, Kept, Record
from shammah.chat.session import Routed
from shammah.errors import ShammahError
from shammah.history import recorder as recorder_module
from shammah.history.listing import recap
from shammah.history.recorder import CLOSE_S, KEEP_S, Recorder, history_of
from shammah.history.resuming import read_conversation, take_up
from shammah.history.store import Store
from shammah.privacy.gate import Gate
from shammah.router.decision import Reason, RouteDecision, Target
from shammah.settings.load import load_settings
from tests.fakes.sandbox import Sandbox

Open = Callable[..., Recorder]


@pytest.fixture
def path(sandbox: Sandbox) -> Path:
    return sandbox.shammah_home / "history.db"


@pytest.fixture
def open_recorder(path: Path) -> Iterator[Open]:
    opened: list[Recorder] = []

    def make(*, enabled: bool = True) -> Recorder:
        opened.append(Recorder(path, enabled=enabled))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def record(key: str, question: str = "", *, private: bool = False, target: str = "local") -> Record:
    return Record(key, float(len(key)), question or key, f"answer {key}", target, private=private)


def keep(recorder: Recorder, *records: Record) -> None:
    for one in records:
        recorder.keep(one, "Be brief.", system_private=False)


def kept(path: Path) -> list[tuple[int, list[str]]]:
    """Each conversation and the keys of its turns; those that were undone in brackets."""
    store = Store(path)
    found = []
    for number in store.numbers():
        talk = store.read(number)
        assert talk is not None
        keys = [f"({one.key})" if one.undone else one.key for one in talk.records]
        found.append((number, keys))
    store.close()
    return found


class TestARecorder:
    def test_keeps_turns_as_they_come(self, open_recorder: Open, path: Path) -> None:
        recorder = open_recorder()
        assert not path.exists()
        keep(recorder, record("a"), record("bb"))
        assert kept(path) == [(1, ["a", "bb"])]
        recorder.leave()
        keep(recorder, record("ccc"))
        assert kept(path) == [(1, ["a", "bb"]), (2, ["ccc"])]

    def test_keeps_a_question_before_its_answer(self, open_recorder: Open, path: Path) -> None:
        recorder = open_recorder()
        asked = Record("a", 1.0, "tides?", "", finish="left", complete=False)
        recorder.begin(asked, "Be brief.", system_private=False)
        recorder.settle()
        assert (kept(path), recorder.records) == ([(1, ["a"])], ())
        keep(recorder, record("a"))
        assert kept(path) == [(1, ["a"])]
        assert read_conversation(recorder, 1).records == (record("a"),)
        recorder.undo()
        recorder.close()
        assert kept(path) == [(1, ["(a)"])]

    def test_says_what_it_could_not_keep_each_time(self, open_recorder: Open, path: Path) -> None:
        recorder = open_recorder()
        for key in ("a", "bb"):
            path.mkdir()
            recorder.begin(record(key), "", system_private=False)
            keep(recorder, record(key))
            (complaint,) = recorder.take_complaints()
            assert complaint.startswith("This turn is not in the history. ")
            path.rmdir()
            keep(recorder, record(key + "c"))
            assert recorder.take_complaints() == []
            for file in path.parent.glob("history.db*"):
                file.unlink()

    def test_says_what_it_waits_for_and_what_comes_too_late(
        self, open_recorder: Open, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Store(path).open().close()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(recorder_module, "NOTICE_S", 0.01)
        monkeypatch.setattr(recorder_module, "KEEP_S", 0.01)
        recorder = open_recorder()
        said: list[str] = []
        recorder.on_wait = said.append
        keep(recorder, record("a"))
        assert said == [recorder_module.WAITING]
        assert recorder.take_complaints() == [recorder_module.NOT_KEPT]
        other.execute("ROLLBACK")
        other.close()
        recorder.close()
        assert kept(path) == [(1, ["a"])]

    def test_marks_what_is_undone(self, open_recorder: Open, path: Path) -> None:
        recorder = open_recorder()
        recorder.undo()
        keep(recorder, record("a"), record("bb"))
        recorder.undo()
        keep(recorder, record("ccc"))
        recorder.close()
        assert kept(path) == [(1, ["a", "(bb)", "ccc"])]

    def test_goes_on_with_a_conversation(self, open_recorder: Open, path: Path) -> None:
        keep(open_recorder(), record("a"), record("bb"))
        keep(open_recorder(), record("ccc"))
        later = open_recorder()
        later.resume(read_conversation(later, 1))
        later.undo()
        keep(later, record("dddd"))
        later.close()
        assert kept(path) == [(1, ["a", "(bb)", "dddd"]), (2, ["ccc"])]

    def test_keeps_a_conversation_from_elsewhere_once_it_goes_on(
        self, open_recorder: Open, path: Path
    ) -> None:
        recorder = open_recorder()
        recorder.adopt(Kept(9, "Be kind.", records=(record("a"), record("bb"))))
        recorder.undo()
        recorder.prepare()
        assert [one.key for one in recorder.records] == ["a"]
        keep(recorder, record("ccc"))
        recorder.close()
        assert kept(path) == [(1, ["a", "(bb)", "ccc"])]

    def test_keeps_no_conversation_from_elsewhere_that_does_not_go_on(
        self, open_recorder: Open, path: Path
    ) -> None:
        recorder = open_recorder()
        recorder.adopt(Kept(9, records=(record("a"),)))
        recorder.prepare()
        recorder.close()
        assert kept(path) == []

    def test_that_is_switched_off_writes_nothing(self, open_recorder: Open, path: Path) -> None:
        recorder = open_recorder(enabled=False)
        recorder.prepare()
        keep(recorder, record("a"))
        recorder.undo()
        with pytest.raises(ShammahError, match="no history yet"):
            read_conversation(recorder, 0)
        recorder.close()
        assert not list(path.parent.glob("history*"))

    @pytest.mark.parametrize("another", [True, False])
    def test_that_cannot_write_says_so_once_and_tries_again(
        self, open_recorder: Open, path: Path, another: bool
    ) -> None:
        path.mkdir()
        recorder = open_recorder()
        keep(recorder, record("a"), record("bb"))
        (complaint,) = recorder.take_complaints()
        assert str(path) in complaint
        assert recorder.take_complaints() == []
        path.rmdir()
        if another:
            keep(recorder, record("ccc"))
        recorder.close()
        assert kept(path) == [(1, ["a", "bb", "ccc"][: 2 + another])]

    def test_goes_on_after_damage(self, open_recorder: Open, path: Path) -> None:
        path.write_bytes(b"no database " * 100)
        recorder = open_recorder()
        keep(recorder, record("a"))
        assert len(recorder.take_complaints()) == 1
        assert kept(path) == [(1, ["a"])]

    def test_leaves_a_file_of_a_newer_version_alone(self, open_recorder: Open, path: Path) -> None:
        Store(path).open().close()
        database = sqlite3.connect(path)
        database.execute("PRAGMA user_version = 99")
        database.close()
        before = path.read_bytes()
        recorder = open_recorder()
        keep(recorder, record("a"), record("bb"))
        (complaint,) = recorder.take_complaints()
        assert "newer Shammah" in complaint
        assert path.read_bytes() == before


def test_there_is_no_such_conversation(open_recorder: Open) -> None:
    recorder = open_recorder()
    keep(recorder, record("a"))
    with pytest.raises(ShammahError, match="no conversation 7"):
        read_conversation(recorder, 7)
    assert read_conversation(recorder, 0).number == 1


@pytest.mark.parametrize(
    ("environ", "flag", "enabled"),
    [({}, True, True), ({}, False, False), ({"SHAMMAH_HISTORY": "off"}, True, False)],
)
def test_the_setting_and_the_flag(environ: dict[str, str], flag: bool, enabled: bool) -> None:
    settings = load_settings({**os.environ, **environ})
    assert history_of(settings, enabled=flag).enabled == enabled


class TestTakingUp:
    def gate(self, home: Path, rules: str = "") -> Gate:
        (home / "config.toml").write_text(rules)
        return Gate(load_settings(os.environ), os.environ)

    def test_keeps_the_marks(self, sandbox: Sandbox) -> None:
        records = (record("a"), record("b", private=True), record("c", target="cloud"), record("d"))
        talk = Conversation()
        take_up(Kept(1, records=records), talk, self.gate(sandbox.shammah_home), None)
        # d: a local model has seen b, and may repeat it.
        assert [turn.private for turn in talk.turns] == [False, True, False, True]

    def test_applies_the_rules_of_today(self, sandbox: Sandbox) -> None:
        gate = self.gate(sandbox.shammah_home, '[privacy]\nwords = ["walrus"]')
        talk = Conversation()
        kept = Kept(1, "You are a walrus.", records=(record("a", "Walrus?"),))
        take_up(kept, talk, gate, None)
        assert talk.system_private
        assert talk.turns[0].private

    def test_takes_the_system_prompt_that_was_asked_for(self, sandbox: Sandbox) -> None:
        gate, talk = self.gate(sandbox.shammah_home), Conversation("before")
        kept = Kept(1, "Be brief.", system_private=True, records=(record("a"),))
        take_up(kept, talk, gate, None)
        assert (talk.system, talk.system_private) == ("Be brief.", True)
        take_up(kept, talk, gate, "Be kind.")
        assert (talk.system, talk.system_private, len(talk.turns)) == ("Be kind.", False, 1)

    def test_leaves_out_what_was_undone(self, sandbox: Sandbox) -> None:
        gone = Record("b", 0.0, "b", "b", undone=True)
        talk = Conversation()
        take_up(Kept(1, records=(record("a"), gone)), talk, self.gate(sandbox.shammah_home), None)
        assert [turn.question for turn in talk.turns] == ["a"]


def test_the_end_of_an_answer_waits_longer_than_its_writer() -> None:
    assert KEEP_S > 2 * BUSY_S  # with the question, and with the turn
    assert CLOSE_S > BUSY_S


class TestAnAnswer:
    decision = RouteDecision(Target.LOCAL, Reason.MODEL_READY)
    tokens = (Token("r", 1, "hm", reasoning=True), Token("r", 2, "half"), Token("r", 3, " said"))

    def watched(self, *end: Done | Failed) -> Answering:
        answering = Answering("question", False, lambda: "")
        steps = (Routed(self.decision), *self.tokens, *end)
        assert tuple(answering.watch(steps)) == steps
        return answering

    def end(self, reason: str) -> Done:
        by = Provenance("inference", "small")
        return Done("r", reason, Usage(3, 2), Timings(0.5), by)

    @pytest.mark.parametrize(
        ("end", "finish", "complete"),
        [
            ("stop", "stop", True),
            ("length", "length", True),
            ("cancelled", "cancelled", False),
            ("timeout", "timeout", False),
        ],
    )
    def test_is_kept_with_how_it_ended(self, end: str, finish: str, complete: bool) -> None:
        answering = self.watched(self.end(end))
        turn = answering.turn(answer_private=True)
        written = answering.record(turn, 5.0)
        assert (written.finish, written.complete, written.private) == (finish, complete, True)
        assert (written.question, written.answer) == ("question", "half said")
        assert (written.target, written.reason, written.model) == ("local", "model_ready", "small")
        assert (written.usage, written.timings) == (Usage(3, 2), Timings(0.5))

    @pytest.mark.parametrize(
        ("end", "finish"),
        [
            ((Failed("worker_died", "It died."),), "failed"),
            ((Failed("cancelled", "Cancelled."),), "cancelled"),
            ((), "left"),
        ],
    )
    def test_that_broke_off_is_kept_as_far_as_it_came(
        self, end: tuple[Failed, ...], finish: str
    ) -> None:
        answering = self.watched(*end)
        turn = answering.turn(answer_private=False)
        written = answering.record(turn, 5.0)
        assert (written.answer, written.finish, written.complete) == ("half said", finish, False)

    @pytest.mark.parametrize("said", ["", " \n"])
    def test_without_text_is_no_answer(self, said: str) -> None:
        answering = Answering("question", False, lambda: "")
        steps = (Routed(self.decision), Token("r", 1, "Hm", reasoning=True), Token("r", 2, said))
        list(answering.watch((*steps, self.end("length"))))
        assert answering.empty is not None
        assert "still thinking" in answering.empty.message
        assert answering.record(answering.turn(answer_private=False), 5.0).finish == "length"

    def test_that_has_text_or_was_cancelled_is_not_empty(self) -> None:
        assert self.watched(self.end("stop")).empty is None
        answering = Answering("question", False, lambda: "")
        list(answering.watch((Routed(self.decision), self.end("cancelled"))))
        assert answering.empty is None

    def test_that_never_began_is_an_empty_turn(self) -> None:
        answering = Answering("question", False, lambda: "")
        list(answering.watch([Failed("busy", "Busy.")]))
        turn = answering.turn(answer_private=False)
        assert (turn.answer, turn.complete, turn.account.finish) == ("", False, "busy")


class TestARecap:
    talk = Kept(1, records=tuple(record(f"turn {number}") for number in range(9)))

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
        lines = recap(Kept(1, records=(Record("a", 0.0, wide, wide, "local"),)), columns, rows)
        cells = [sum(2 if c == "語" else 1 for c in line) for line in lines]
        assert sum(max(1, -(-cell // columns)) for cell in cells) <= max(3, rows - 3)
        assert "\x1b" not in "".join(lines)
