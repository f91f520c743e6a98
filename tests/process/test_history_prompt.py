"""The history at the prompt: kept, gone on with, switched off. Workers are stand-ins."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from shammah.history.record import StoredConversation
from shammah.history.store import Store
from tests.fakes.command import WITH_STAND_INS, run
from tests.fakes.sandbox import Sandbox, until
from tests.fakes.terminal import CTRL_C, CTRL_D, Record, Terminal

pytestmark = pytest.mark.timeout(300)

Open = Callable[..., Terminal]


@pytest.fixture
def local(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Record:
    monkeypatch.setenv("STAND_IN_INFERENCE", f"--record {sandbox.root}/local --delay-ms 5")
    return Record(sandbox.root / "local")


@pytest.fixture
def cloud(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Record:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-key-of-the-cloud")
    monkeypatch.setenv("STAND_IN_CLOUD", f"--record {sandbox.root}/cloud --delay-ms 5")
    return Record(sandbox.root / "cloud")


@pytest.fixture
def open_terminal(local: Record) -> Iterator[Open]:
    opened: list[Terminal] = []

    def make(*arguments: str) -> Terminal:
        opened.append(Terminal("--model", "starter", *arguments, command=WITH_STAND_INS))
        opened[-1].wait_editor()
        return opened[-1]

    yield make
    for terminal in opened:
        terminal.destroy()


@pytest.fixture
def path(sandbox: Sandbox) -> Path:
    return sandbox.shammah_home / "history.db"


def ask(terminal: Terminal, *questions: str) -> None:
    for question in questions:
        terminal.ask(question)
        terminal.wait_answer()
        terminal.wait_editor()


def command(terminal: Terminal, line: str, pattern: str) -> str:
    terminal.ask(line)
    seen = terminal.expect(pattern)
    terminal.wait_editor()
    return seen


def kill(terminal: Terminal) -> None:
    os.kill(terminal.pid, signal.SIGKILL)
    terminal.end()


def kept(path: Path) -> list[StoredConversation]:
    store = Store(path)
    talks = [store.read(number) for number in store.numbers()]
    store.close()
    return [talk for talk in talks if talk]


def opens(terminal: Terminal, path: Path) -> bool:
    return str(path) in {file.path for file in psutil.Process(terminal.pid).open_files()}


def test_a_killed_session_goes_on_where_it_was(
    open_terminal: Open, local: Record, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    steer = sandbox.root / "steer"
    steer.touch()
    monkeypatch.setenv("STAND_IN_INFERENCE", f"--record {local.path} --steer {steer}")
    terminal = open_terminal()
    ask(terminal, "one", "two")
    steer.write_text("--pause-after 2")
    terminal.ask("what is lost?")
    terminal.wait_answering("what")
    kill(terminal)
    later = open_terminal("--continue")
    assert re.search(r"Continuing conversation 1 of .* \(3 turns\): one", later.text)
    assert "> two\r\ntwo\r\nlocal: starter" in later.text
    assert "> what is lost?\r\nlocal" not in later.text
    assert "Its last question has no answer yet" in later.text
    ask(later, "three")
    said = [("user", "one"), ("assistant", "one"), ("user", "two"), ("assistant", "two")]
    assert local.conversations[-1] == [*said, ("user", "what is lost?\n\nthree")]
    assert "   4 turns  one" in run("history", "list").out


def test_what_is_typed_while_a_conversation_is_read_is_neither_lost_nor_doubled(
    open_terminal: Open, local: Record
) -> None:
    run("ask", "--model", "starter", "one", command=WITH_STAND_INS)
    arguments = ("--model", "starter", "--continue")
    terminal = Terminal(*arguments, command=WITH_STAND_INS)
    terminal.type("typed ahead\r", "and more")
    terminal.wait_answer()
    terminal.wait_editor()
    terminal.type("\r")
    terminal.wait_answer()
    terminal.destroy()
    assert local.questions == ["one", "typed ahead", "and more"]
    assert len(local.conversations[-1]) == 5


def test_a_closed_terminal_keeps_the_answer_as_far_as_it_came(
    open_terminal: Open, path: Path
) -> None:
    terminal = open_terminal()
    terminal.ask("forever half")
    terminal.wait_answering("half forever")
    terminal.hang_up()
    until(lambda: not psutil.pid_exists(terminal.pid) or terminal.child.wait() >= 0, "it ends")
    (talk,) = kept(path)
    (record,) = talk.turns
    assert record.answer.startswith("forever half forever")
    assert (record.complete, record.finish) == (False, "left")
    later = open_terminal("--continue")
    assert "> forever half\r\nforever half forever" in later.text


def test_an_answer_of_thoughts_alone_says_so_and_is_kept(
    open_terminal: Open, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_INFERENCE", "--think")
    terminal = open_terminal()
    seen = command(terminal, "what are tides?", "have it think less")
    assert "reached the limit of 3 tokens before it began to answer" in seen
    (turn,) = kept(path)[0].turns
    assert (turn.answer, turn.finish, turn.usage.output_tokens) == ("", "length", 3)


def test_a_cancelled_answer_is_counted(open_terminal: Open, path: Path) -> None:
    terminal = open_terminal()
    terminal.ask("forever half")
    terminal.wait_answering("half forever")
    terminal.type(CTRL_C)
    assert re.search("local: starter.* tokens", terminal.expect(r"\(cancelled\)"))
    terminal.wait_editor()
    (turn,) = kept(path)[0].turns
    assert turn.provenance is not None
    assert (turn.finish, turn.provenance.model, turn.usage.output_tokens >= 3) == (
        "cancelled",
        "starter",
        True,
    )


def test_text_from_right_to_left_is_asked_kept_shown_and_found(
    open_terminal: Open, local: Record
) -> None:
    words = "שלום עולם مرحبا"
    terminal = open_terminal()
    terminal.ask(f"{words}x\x7f")  # one letter taken back: of what was typed last
    terminal.wait_answer()
    terminal.wait_editor()
    kill(terminal)
    assert local.questions == [words]
    later = open_terminal("--continue")
    assert f"> {words}\r\n{words}\r\n" in later.text
    assert words in run("history", "search", "مرحبا").out


class TestPrivateTurns:
    def test_of_a_resumed_conversation_stay_here(
        self, open_terminal: Open, local: Record, cloud: Record, path: Path
    ) -> None:
        terminal = open_terminal()
        ask(terminal, "!private the secret plan")
        kill(terminal)
        assert kept(path)[0].turns[0].private
        later = open_terminal("--continue", "--cloud")
        later.ask("hello")
        assert "1 private turn left out" in later.wait_answer()
        later.wait_editor()
        kill(later)
        ended = run("ask", "--model", "starter", "-c", "--cloud", "again", command=WITH_STAND_INS)
        assert ended.code == 0, ended.said
        hello = [("user", "hello"), ("assistant", "hello")]
        assert cloud.conversations == [hello[:1], [*hello, ("user", "again")]]
        assert "secret" not in (cloud.path).read_text()

    def test_of_a_saved_and_loaded_conversation_stay_here(
        self, open_terminal: Open, sandbox: Sandbox, cloud: Record
    ) -> None:
        terminal = open_terminal()
        ask(terminal, "!private the secret plan")
        command(terminal, f"/save {sandbox.root}/talk.jsonl", "1 turn of it private")
        kill(terminal)
        later = open_terminal("--cloud")
        for name in ("talk.jsonl", "talk.jsonl"):
            command(
                later,
                f"/load {sandbox.root}/{name}",
                "Continuing the saved conversation of .*1 turn",
            )
            ask(later, f"hello {name}")
        assert cloud.questions == ["hello talk.jsonl"] * 2
        assert "secret" not in (cloud.path).read_text()


class TestTheCommands:
    def test_find_and_go_on_with_a_conversation(self, open_terminal: Open, local: Record) -> None:
        terminal = open_terminal()
        command(terminal, "/history", "The history is empty")
        ask(terminal, "about walruses", "more")
        command(terminal, "/clear", "new conversation")
        ask(terminal, "about carpenters")
        seen = command(terminal, "/history", "/resume NUMBER")
        assert seen.index("about carpenters") < seen.index("about walruses")
        command(terminal, "/history carp", re.escape("\x1b[1mcarpenters"))
        command(terminal, "/history nothing", "Nothing was found")
        command(terminal, "/resume 9", "There is no conversation 9")
        command(terminal, "/resume one", "is not a conversation")
        command(terminal, "/resume 1", "Continuing conversation 1 of .*2 turns")
        ask(terminal, "and?")
        assert local.conversations[-1][0] == ("user", "about walruses")
        assert len(local.conversations[-1]) == 5

    def test_take_a_turn_back(self, open_terminal: Open, local: Record, path: Path) -> None:
        terminal = open_terminal()
        command(terminal, "/undo", "There is no turn to undo")
        ask(terminal, "one", "two")
        command(terminal, "/undo", "Undone: two")
        ask(terminal, "three")
        assert [text for _, text in local.conversations[-1]] == ["one", "one", "three"]
        terminal.type(CTRL_D)
        terminal.end()
        assert [one.undone for one in kept(path)[0].turns] == [False, True, False]

    def test_save_and_load_files_and_lose_nothing(
        self, open_terminal: Open, sandbox: Sandbox, local: Record
    ) -> None:
        terminal = open_terminal()
        file = sandbox.root / "talk.jsonl"
        command(terminal, f"/save {file}", "Nothing to save")
        ask(terminal, "one")
        command(terminal, f"/save {file}", "Saved 1 turn")
        command(terminal, f"/save {file}", "exists")
        ask(terminal, "two")
        command(terminal, f"/save! {file}", "Saved 2 turns")
        command(terminal, f"/save {sandbox.root}/talk.md", "Saved 2 turns")
        command(terminal, f"/load {sandbox.root}/talk.md", "not a conversation that Shammah saved")
        command(terminal, "/save talk.txt", "neither in .md nor in")
        bad = sandbox.root / "bad.md"
        bad.write_text("# Notes\n")
        command(terminal, f"/load {bad}", "cannot be loaded")
        command(terminal, f"/load {sandbox.root}/none.md", "cannot be read")
        ask(terminal, "three")
        assert len(local.conversations[-1]) == 5
        command(terminal, f"/load {file}", "Continuing the saved conversation of .*2 turns")
        ask(terminal, "four")
        assert [text for _, text in local.conversations[-1]] == ["one", "one", "two", "two", "four"]


class TestTheFile:
    def test_is_not_opened_before_a_question_is_asked(
        self, open_terminal: Open, path: Path
    ) -> None:
        Store(path).open().close()
        terminal = open_terminal()
        assert not opens(terminal, path)
        ask(terminal, "one")
        assert opens(terminal, path)

    @pytest.mark.parametrize("how", ["flag", "variable", "setting"])
    def test_is_not_made_when_it_is_switched_off(
        self, open_terminal: Open, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        if how == "variable":
            monkeypatch.setenv("SHAMMAH_HISTORY", "off")
        elif how == "setting":
            (sandbox.shammah_home / "config.toml").write_text('history = "off"')
        flag = ["--no-history"] if how == "flag" else []
        terminal = open_terminal(*flag)
        ask(terminal, "one")
        command(terminal, "/undo", "Undone")
        terminal.type(CTRL_D)
        terminal.end()
        arguments = ["ask", "--model", "starter", *flag, "two"]
        assert run(*arguments, command=WITH_STAND_INS).code == 0
        assert not list(sandbox.shammah_home.glob("history*"))

    def test_that_cannot_be_used_is_told_once_and_the_session_goes_on(
        self, open_terminal: Open, path: Path
    ) -> None:
        path.mkdir()
        terminal = open_terminal("--continue")
        assert "cannot be used" in terminal.text
        assert "Started a new conversation." in terminal.text
        ask(terminal, "one", "two")
        assert terminal.text.count("cannot be used") == 1
