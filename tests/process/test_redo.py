"""Why it was answered by whom, and the same question once more: at the prompt, with real
processes. Both workers are stand-ins; a person is there only on the terminal."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator

import pytest

from shammah.bus.messages import Ready
from shammah.chat.options import ReplOptions
from shammah.chat.session import Session
from shammah.history.record import StoredConversation
from shammah.history.store import Store as HistoryStore
from shammah.learning.feedback import Feedback
from shammah.privacy.gate import NEVER
from shammah.repl.loop import Repl
from shammah.router.decision import Override, Target
from shammah.router.statistics import Label, Tally
from shammah.router.store import Store
from shammah.settings.load import load_settings
from shammah.terminal.screen import Screen
from tests.fakes.command import WITH_STAND_INS
from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import Sandbox, until
from tests.fakes.terminal import Record, Terminal
from tests.process.conftest import StartEcho

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-1")
    monkeypatch.setenv("TERM", "dumb")


@pytest.fixture
def cloud(sandbox: Sandbox) -> Record:
    return Record(sandbox.root / "cloud")


@pytest.fixture(autouse=True)
def workers(start_echo: StartEcho, cloud: Record) -> list[EchoProcess]:
    """Both are ready; Claude repeats all that it is told."""
    options = ("--recite", "--record", str(cloud.path))
    both = [start_echo(), start_echo(*options, role="cloud", model="claude-sonnet-5-5")]
    for worker in both:
        until(lambda: isinstance(worker.status().status.state, Ready), "ready")  # noqa: B023
    return both


class Person:
    """Types at a prompt whose screen is no terminal."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._said = io.StringIO()
        self.repl = Repl(session, ReplOptions(), Screen({}, self._said))
        self.conversation = self.repl.conversation

    def type(self, line: str) -> str:
        """What the screen shows after ``line``."""
        before = len(self._said.getvalue())
        self.repl.act(line)
        return self._said.getvalue()[before:]

    def leave(self) -> None:
        self.repl.close()


def open_person(*, local_only: bool = False) -> Person:
    settings = load_settings(os.environ, "starter")
    return Person(Session(settings, os.environ, "repl", local_only=local_only))


@pytest.fixture
def person() -> Iterator[Person]:
    one = open_person()
    link = one.session.cloud
    one.session.start()
    assert link is not None
    until(lambda: one.session.local.attached and link.attached, "both are attached")
    until(lambda: isinstance(one.session.view().local, Ready), "the local model is known")
    yield one
    one.leave()


def learnt(sandbox: Sandbox) -> dict[str, Tally]:
    store = Store(sandbox.shammah_home / "router.db")
    try:
        return {arm.target.value: tally for arm, tally in store.read().arms.items()}
    finally:
        store.close()


class TestWhy:
    def test_tells_the_last_answer_and_any_other(self, person: Person) -> None:
        person.type("explain tides")
        person.type("/cloud explain the moon")
        told = person.type("/why")
        assert "Question 2: explain the moon" in told
        assert "Answered by Claude: as you asked." in told
        assert re.search(r"local \(starter\): estimated \d+% good answers \(\d+% worst case", told)
        assert re.search(r"cloud \(claude-sonnet-5-5\): estimated \d+% good answers", told)
        told = person.type("/why 1")
        assert "Question 1: explain tides" in told
        assert "Answered locally: " in told
        assert "There is no question '3'. There are 2 so far." in person.type("/why 3")
        assert "There is no question 'x'" in person.type("/why x")

    def test_names_the_rule_that_made_it_private(self, person: Person) -> None:
        person.type("mail jo@acme.de")
        assert "Private, because it contains an e-mail address (privacy.emails)." in person.type(
            "/why"
        )
        person.type("what was that?")
        told = person.type("/why")
        assert "Private, because" in told
        assert "jo@acme.de" not in told.partition("Private, because")[2]

    def test_tells_of_one_that_failed(self, person: Person) -> None:
        person.type("fail as planned")
        told = person.type("/why")
        assert "Answered locally: " in told
        assert "Failed: as planned" in told

    def test_has_nothing_to_tell_before_a_question(self, person: Person) -> None:
        assert "There is no question yet." in person.type("/why")
        assert "There is no question yet." in person.type("/redo")

    def test_every_turn_keeps_what_became_of_it(self, person: Person) -> None:
        person.type("explain tides")
        turn = person.conversation.turns[-1]
        assert turn.decision is not None
        assert len(turn.decision.alternatives) == 2
        assert (turn.finish, turn.usage.output_tokens) == ("stop", 2)
        assert turn.timings.total_s > 0
        assert turn.outcome
        person.type("/good")
        assert person.conversation.turns[-1].label is Label.GOOD


class TestFix:
    def test_counts_as_a_correction_whatever_the_text_looked_like(
        self, person: Person, sandbox: Sandbox
    ) -> None:
        person.type("one")
        person.type("/fix another one")
        assert person.conversation.turns[-1].label is Label.EDIT
        assert "You corrected it." in person.type("/why")
        (example,) = Feedback(sandbox.shammah_home).examples(from_cloud=True)
        assert (example.response, example.weight) == ("another one", 10.0)
        person.leave()
        local = learnt(sandbox)["local"]
        assert (local.answers, local.trials, local.successes) == (1, 1.0, 0.0)

    def test_is_what_the_conversation_and_the_history_go_on_from(
        self, person: Person, cloud: Record, sandbox: Sandbox
    ) -> None:
        person.type("one")
        person.type("/fix better")
        assert "your own" in person.type("/good")
        person.type("/cloud two")
        assert cloud.conversations == [[("user", "one"), ("assistant", "better"), ("user", "two")]]
        kept = read_history(sandbox)
        assert [(one.answer, one.undone) for one in kept.turns[:2]] == [
            ("one", True),
            ("better", False),
        ]
        resumed = open_person()
        resumed.type("/resume 1")
        assert resumed.conversation.turns[0].given == "one"
        assert "You corrected it." in resumed.type("/why 1")
        resumed.leave()
        person.type("/undo")
        person.type("/undo")
        person.leave()
        assert read_history(sandbox).present == ()

    def test_is_shown_as_the_first_when_it_is_asked_again(self, person: Person) -> None:
        person.type("one")
        person.type("/fix better")
        assert "1: your own\nbetter" in person.type("/redo cloud")
        assert [turn.answer for turn in person.conversation.turns] == ["one"]
        assert not person.conversation.turns[-1].corrected


def read_history(sandbox: Sandbox) -> StoredConversation:
    """The only conversation, when everything is written."""
    store = HistoryStore(sandbox.shammah_home / "history.db")
    try:
        kept = store.read(1)
        assert kept is not None
        return kept
    finally:
        store.close()


class TestRedo:
    def test_asks_the_other_one_and_keeps_his_answer(
        self, person: Person, cloud: Record, sandbox: Sandbox
    ) -> None:
        person.type("one")
        person.type("two")
        told = person.type("/redo")
        assert cloud.conversations == [[("user", "one"), ("assistant", "one"), ("user", "two")]]
        assert told.index("1: local: starter") < told.index("2:") < told.index("one one two")
        assert "Which was better" not in told  # nobody is there
        assert [turn.answer for turn in person.conversation.turns] == ["one", "one one two"]
        person.leave()
        local = learnt(sandbox)["local"]
        # One looked right (0.25), the other was asked again (1).
        assert (local.answers, local.trials, local.successes) == (2, 1.25, 0.25)

    def test_goes_back_again(self, person: Person) -> None:
        person.type("one")
        person.type("/redo cloud")
        assert "1: cloud: claude-sonnet-5-5" in person.type("/redo")
        (turn,) = person.conversation.turns
        assert turn.decision is not None
        assert turn.decision.target is Target.LOCAL

    def test_without_a_key_is_by_who_answered_before(
        self, monkeypatch: pytest.MonkeyPatch, cloud: Record
    ) -> None:
        monkeypatch.delenv("ANTHROPIC_API_KEY")
        one = open_person()
        try:
            one.type("one")
            told = one.type("/redo")
            assert "no API key is set. Asking the local model again." in told
            assert "2:\none" in told
            told = one.type("/redo cloud")
            assert "no API key is set" in told
            assert "2:" not in told
            assert "no API key is set" in one.type("/cloud two")
            assert [turn.question for turn in one.conversation.turns] == ["one"]
        finally:
            one.leave()
        assert cloud.conversations == []

    def test_of_a_private_turn_is_by_the_local_model(self, person: Person, cloud: Record) -> None:
        person.type("/private on")
        person.type("one")
        told = person.type("/redo")
        assert "/private is on. Asking the local model again." in told
        assert "2:\none" in told
        assert cloud.conversations == []

    @pytest.mark.parametrize(
        ("first", "why"),
        [
            ("!private", "you said so"),
            ("/private", "/private is on"),
            ("rule", "it contains an e-mail address (privacy.emails)"),
            ("repeated", "its answer may repeat what was private before"),
        ],
    )
    def test_of_a_private_turn_is_refused(
        self, person: Person, cloud: Record, first: str, why: str
    ) -> None:
        match first:
            case "!private":
                person.repl.ask("secret", True, Override())
            case "/private":
                person.type("/private on")
                person.type("secret")
            case "rule":
                person.type("mail jo@acme.de")
            case "repeated":
                person.repl.ask("secret", True, Override())
                person.type("what was that?")
        before = list(person.conversation.turns)
        assert f"Not sent. This turn is private, because {why}." in person.type("/redo cloud")
        assert person.conversation.turns == before
        assert "Not sent" in person.type("/redo")
        person.type("/redo local")
        assert len(person.conversation.turns) == len(before)
        assert person.conversation.turns[-1].private
        assert cloud.conversations == []

    def test_that_fails_leaves_the_first_answer(
        self, person: Person, workers: list[EchoProcess], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        person.type("one")
        (before,) = person.conversation.turns
        monkeypatch.setattr(person.session.gate, "open", lambda *_: NEVER)
        told = person.type("/redo cloud")
        assert "cloud.use is never" in told
        assert "Keeping the first answer." in told
        assert person.conversation.turns == [before]

    def test_of_a_question_without_an_answer_asks_it_again(
        self, person: Person, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(person.session.gate, "open", lambda *_: NEVER)
            person.type("/cloud one")
        assert person.conversation.turns[-1].answer == ""
        assert "Nobody was asked. To choose: /redo local or /redo cloud" in person.type("/redo")
        assert "1:" not in person.type("/redo local")
        assert [turn.answer for turn in person.conversation.turns] == ["one"]

    def test_that_breaks_like_the_first_leaves_the_first(self, person: Person) -> None:
        person.type("/cloud fail as planned")
        assert "Keeping the first answer." in person.type("/redo local")
        (turn,) = person.conversation.turns
        assert turn.end is not None

    def test_knows_two_answerers(self, person: Person) -> None:
        person.type("one")
        assert "local or cloud, not 'moon'" in person.type("/redo moon")


class TestWhatIsLearnt:
    """Of two answers that somebody compares."""

    @pytest.mark.parametrize(
        ("first", "again", "said", "better"),
        [
            ("/local two", "/redo", "2", "Claude"),
            ("/cloud two", "/redo", "1", "Claude"),
            ("/local two", "/redo", "1", ""),
            ("/local two", "/redo", "same", ""),
            ("/local two", "/redo local", "2", ""),
        ],
    )
    def test_is_claudes_where_it_is_the_better(
        self,
        person: Person,
        sandbox: Sandbox,
        monkeypatch: pytest.MonkeyPatch,
        first: str,
        again: str,
        said: str,
        better: str,
    ) -> None:
        monkeypatch.setattr(Repl, "inquire", lambda self, question: said)
        person.type("/local one")
        person.type(first)
        answers = [person.conversation.turns[-1].answer]
        person.type(again)
        answers.append(person.conversation.turns[-1].answer)
        verdicts = Feedback(sandbox.shammah_home).verdicts()
        if not better:
            assert verdicts == ()
            return
        (verdict,) = verdicts
        of_claude = first.startswith("/local")
        assert (verdict.turn.role, verdict.turn.answer) == ("inference", answers[not of_claude])
        assert verdict.better == answers[of_claude]
        assert [m.content for m in verdict.turn.messages] == ["one", "one", "two"]


class TestLocalAndCloud:
    def test_one_question(self, person: Person, cloud: Record) -> None:
        person.type("/cloud one")
        person.type("/local two")
        assert "Not sent to Claude: you said" in person.type("/cloud !private three")
        person.type("/private on")
        assert "Not sent to Claude: /private is on." in person.type("/cloud four")
        assert "Not sent" not in person.type("five")
        assert [talk[-1][1] for talk in cloud.conversations] == ["one"]
        assert person.conversation.turns[-1].private
        assert "Write the question after /cloud" in person.type("/cloud")

    def test_from_now_on(self, person: Person) -> None:
        assert "Each question goes" in person.type("/local")
        person.type("/local on")
        assert "until /local off" in person.type("/local")
        person.type("one")
        assert "as you asked" in person.type("/why")
        person.type("/local off")
        person.type("two")
        assert "as you asked" not in person.type("/why")

    def test_a_prompt_without_cloud_says_so(self) -> None:
        one = open_person(local_only=True)
        try:
            one.conversation.turns.clear()
            assert "without --local" in one.type("/cloud hello")
            assert "without --local" in one.type("/local off")
        finally:
            one.leave()


@pytest.mark.parametrize(
    ("typed", "local", "claude", "kept"),
    [
        ("2", (1.0, 0.0), (1.0, 1.0), [("explain tides", 3.0)]),
        ("", (1.0, 0.0), (0.25, 0.25), []),
    ],
)
def test_a_person_says_which_was_better(
    sandbox: Sandbox,
    typed: str,
    local: tuple[float, float],
    claude: tuple[float, float],
    kept: list[tuple[str, float]],
) -> None:
    """Claude's answer, where it was better, is one to learn from."""
    terminal = Terminal(
        "--model", "starter", command=WITH_STAND_INS, environ={"TERM": "xterm-256color"}
    )
    try:
        terminal.wait_editor()
        terminal.ask("/local explain tides")
        terminal.wait_answer()
        terminal.wait_editor()
        terminal.ask("/redo")
        terminal.expect(re.escape("Which was better? [1], [2], [s]ame; Enter skips: "))
        terminal.ask(typed)
        terminal.wait_editor()
        terminal.ask("/quit")
        assert terminal.end() == 0
    finally:
        terminal.destroy()
    known = learnt(sandbox)
    assert (known["local"].trials, known["local"].successes) == local
    assert (known["cloud"].trials, known["cloud"].successes) == claude
    examples = Feedback(sandbox.shammah_home).examples(from_cloud=True)
    assert [(one.prompt[-1][1], one.weight) for one in examples] == kept
    assert all(one.response for one in examples)


def test_an_interrupt_at_the_question_says_nothing(sandbox: Sandbox, cloud: Record) -> None:
    terminal = Terminal(
        "--model", "starter", command=WITH_STAND_INS, environ={"TERM": "xterm-256color"}
    )
    try:
        terminal.wait_editor()
        terminal.ask("/local explain tides")
        terminal.wait_answer()
        terminal.wait_editor()
        terminal.ask("/redo")
        terminal.expect("Which was better")
        terminal.type("\x03")
        terminal.wait_editor()
        terminal.ask("/quit")
        assert terminal.end() == 0
    finally:
        terminal.destroy()
    assert learnt(sandbox)["local"].successes == 0.0
