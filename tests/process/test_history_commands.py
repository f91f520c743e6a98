"""``shammah history`` as a shell sees it."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shammah.bus.messages import Provenance
from shammah.errors import ExitCode
from shammah.history.record import StoredConversation
from shammah.history.store import Store
from tests.fakes.command import SHAMMAH, run
from tests.fakes.sandbox import LIMIT_S, Sandbox
from tests.fakes.stored import stored_turn
from tests.fakes.terminal import CTRL_C, Terminal

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def path(sandbox: Sandbox) -> Path:
    return sandbox.shammah_home / "history.db"


@pytest.fixture
def filled(path: Path) -> Iterator[Path]:
    """Conversation 1 about walruses, with an escape sequence; 2 about carpenters."""
    store = Store(path)
    by = Provenance("inference", "starter")
    told = "A \x1b[31mmammal.\x1b]0;title\x07"
    walrus = stored_turn("a", 1e9, "What is a walrus?", told, by=by)
    store.add(walrus, StoredConversation(0))
    store.add(
        stored_turn("b", 1.1e9, "And?", "That's all.", by=by, private=True), StoredConversation(1)
    )
    store.add(
        stored_turn("c", 2e9, "What is a carpenter?", "A person.", by=by), StoredConversation(0)
    )
    store.close()
    return path


def history(*arguments: str) -> str:
    ended = run("history", *arguments)
    assert ended.code == 0, ended.said
    assert "\x1b" not in ended.said
    return ended.out


def test_nothing_yet_says_how_it_fills_and_makes_no_file(path: Path) -> None:
    ended = run("history", "list")
    assert (ended.code, ended.out) == (0, "")
    assert "The history is empty. Questions at the prompt" in ended.err
    assert history("list", "--json") == history("export") == ""
    assert run("history", "search", "walrus").code == 1
    assert run("history", "show", "1").code == 1
    assert run("history", "rm", "--all", "--yes").code == 0
    assert not path.exists()


@pytest.mark.usefixtures("filled")
class TestWhatIsKept:
    def test_is_listed_newest_first(self) -> None:
        lines = history("list").splitlines()
        assert [line.split()[0] for line in lines] == ["2", "1"]
        assert lines[1].endswith("2 turns  (private) What is a walrus?")
        assert lines[0].endswith("1 turn   What is a carpenter?")
        ended = run("history", "list", "--limit", "1")
        assert len(ended.out.splitlines()) == 1
        assert ended.err == "1 more: `shammah history list -n 0` shows all.\n"
        assert run("history", "list", "-n", "0").err == ""
        first = json.loads(history("list", "--json").splitlines()[0])
        assert (first["id"], first["turns"], first["title"]) == (2, 1, "What is a carpenter?")

    def test_is_shown(self) -> None:
        shown = history("show", "1")
        assert "> What is a walrus?\nA [31mmammal." in shown
        assert "local: starter · local model ready" in shown
        assert "· private" in shown
        document = json.loads(history("show", "1", "--json"))
        assert document["turns"][0]["answer"].startswith("A \x1b[31m")
        assert [turn["private"] for turn in document["turns"]] == [False, True]

    def test_may_be_empty(self, path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("DELETE FROM turns WHERE conversation = 1")
        ended = run("history", "show", "1")
        assert (ended.code, ended.out, ended.err) == (0, "", "Conversation 1 is empty.\n")
        assert json.loads(history("show", "1", "--json"))["turns"] == []

    def test_is_found(self) -> None:
        assert "carpenter" in history("search", "carp", "person")
        (hit,) = map(json.loads, history("search", "walrus", "--json").splitlines())
        assert (hit["id"], hit["snippet"]) == (1, "What is a **walrus**?")
        assert history("search", "--raw", "question: what NOT walrus").startswith("   2")
        for words, code in (('wal"', 0), ("AND (", 0), ("--", 2), ("nothing", 1)):
            ended = run("history", "search", "--", words)
            assert ended.code == code, ended.said
        assert "FTS5 cannot read" in run("history", "search", "--raw", "a AND").err

    def test_is_marked_on_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for variable, mark in (("", "\x1b[1mwalrus\x1b[0m"), ("NO_COLOR", "walrus?")):
            if variable:
                monkeypatch.setenv(variable, "1")
            terminal = Terminal("history", "search", "walrus")
            assert terminal.end() == 0
            assert mark in terminal.output

    def test_is_exported(self, sandbox: Sandbox) -> None:
        assert [json.loads(line)["id"] for line in history("export").splitlines()] == [1, 2]
        file = sandbox.root / "talk.md"
        history("export", "2", "-o", str(file))
        assert file.read_text() == (
            "# What is a carpenter?\n\n## You\n\nWhat is a carpenter?\n\n## starter\n\nA person.\n"
        )
        assert run("history", "export", "-o", str(file)).code == 1
        assert run("history", "export", "7").code == 1

    def test_is_exported_as_markdown_to_a_terminal(self) -> None:
        terminal = Terminal("history", "export", "1")
        assert terminal.end() == 0
        assert "# What is a walrus?\r\n" in terminal.output
        assert "## You (private)" in terminal.output
        assert "{" not in terminal.output
        assert "\x1b]0" not in terminal.output

    def test_on_a_locked_file_asks_to_try_again(self, filled: Path) -> None:
        other = sqlite3.connect(filled, isolation_level=None)
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        for command in (("list",), ("export",)):
            ended = run("history", *command)
            assert (ended.code, ended.out) == (1, "")
            assert ended.err.splitlines() == [
                f"shammah: {filled} is locked by another program.",
                "Try again in a moment.",
            ]
        other.close()

    def test_can_be_read_by_somebody_who_has_seen_enough(self, filled: Path) -> None:
        store = Store(filled)
        for number in range(200):
            store.add(stored_turn(f"x{number}", 1.0, "q" * 5000, "a"), StoredConversation(0))
        store.close()
        command = [*SHAMMAH, "history", "export"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stderr is not None
            child.stdout.readline()
            child.stdout.close()
            assert child.stderr.read() == b""
            assert child.wait(LIMIT_S) == ExitCode.BROKEN_PIPE


class TestRemoving:
    def test_asks_first(self, filled: Path) -> None:
        for typed, code in (("n\r", 1), ("\r", 1), ("\x04", 1), (CTRL_C, 130), ("y\r", 0)):
            terminal = Terminal("history", "rm", "1")
            terminal.expect("What is a walrus.*Permanently remove 1 conversation")
            assert b"walrus" in filled.read_bytes()
            terminal.type(typed)
            if typed == CTRL_C:
                terminal.insist(CTRL_C)
            assert terminal.end() == code, terminal.text
            assert "Traceback" not in terminal.text
        assert b"walrus" not in filled.read_bytes()
        assert b"carpenter" in filled.read_bytes()

    def test_removes_nothing_where_nobody_can_be_asked(self, filled: Path) -> None:
        ended = run("history", "rm", "1")
        assert ended.code == 2
        assert "To remove them anyway" in ended.err
        for wrong in ([], ["1", "--all"], ["--before", "soon"], ["0"]):
            assert run("history", "rm", "--yes", *wrong).code == 2
        assert run("history", "rm", "--yes", "1", "7").code == 1
        assert history("list").count("\n") == 2
        assert filled.exists()

    def test_takes_what_is_old_or_all(self, filled: Path) -> None:
        history("rm", "--before", "2020-01-01", "--yes")
        assert "carpenter" in history("list")
        assert "walrus" not in history("list")
        history("rm", "--all", "--yes")
        assert history("list") == ""
        left = b"".join(file.read_bytes() for file in filled.parent.glob("history.db*"))
        assert b"carpenter" not in left


def test_a_damaged_file_is_set_aside_and_told_once(path: Path) -> None:
    path.write_bytes(b"no database " * 100)
    assert "damaged" in run("history", "list").err
    assert "damaged" not in run("history", "list").err
    assert len(list(path.parent.glob("history.db.damaged-*"))) == 1
