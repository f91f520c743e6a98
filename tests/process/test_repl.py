"""The interactive prompt on a terminal: answers, interrupts, commands, ways to leave."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from shammah.repl.commands.table import COMMANDS
from tests.fakes import interrupted
from tests.fakes.command import SHAMMAH, WITH_STAND_INS
from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import LIMIT_S, Sandbox, until
from tests.fakes.terminal import (
    CTRL_C,
    CTRL_D,
    STYLE,
    Held,
    Record,
    Terminal,
)

pytestmark = pytest.mark.timeout(300)

StartEcho = Callable[..., EchoProcess]
Open = Callable[..., Terminal]

PRESSES_CTRL_C = (sys.executable, "-P", str(interrupted.__file__))

REPLACING = {"quit", "unload", "takeover", "load"}
"""Commands after which the stand-in is not there any more."""
RESET_OR_REVERSE = {"\x1b[m", "\x1b[0m", "\x1b[0;7m"}
"""What the editor itself writes, which is no colour."""


@pytest.fixture
def open_terminal() -> Iterator[Open]:
    opened: list[Terminal] = []

    def make(*arguments: str, **options: object) -> Terminal:
        opened.append(Terminal(*arguments, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for terminal in opened:
        terminal.destroy()


@pytest.fixture
def terminal(echo: EchoProcess, open_terminal: Open) -> Terminal:
    """With a worker that is ready and an editor that has loaded."""
    one = open_terminal("--model", "starter")
    one.wait_editor()
    return one


@pytest.mark.parametrize("encoding", ["ascii", "cp1252:strict", "latin-1"])
def test_what_the_locale_cannot_write_is_replaced(
    echo: EchoProcess, record: Record, open_terminal: Open, encoding: str
) -> None:
    terminal = open_terminal("--model", "starter", environ={"PYTHONIOENCODING": encoding})
    terminal.wait_prompt()
    terminal.ask("a ☃ b")  # before the editor is there
    assert "a ? b" in terminal.wait_answer()
    terminal.wait_editor()
    assert record.questions == ["a ☃ b"]
    if encoding == "ascii":  # in the others the same keys mean something else
        terminal.ask("c ☃ d")  # and through it
        assert "c ? d" in terminal.wait_answer()
        assert record.questions[1] == "c ☃ d"
        terminal.wait_editor()
    terminal.type(CTRL_D)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text


def test_a_line_that_is_no_utf_8_is_in_the_locales_encoding(
    echo: EchoProcess, record: Record, open_terminal: Open
) -> None:
    terminal = open_terminal("--model", "starter", environ={"PYTHONIOENCODING": "latin-1"})
    terminal.wait_prompt()
    os.write(terminal.child.child_fd, "schön\r".encode("latin-1"))
    assert record.wait(1) == ["schön"]
    terminal.wait_answer()
    terminal.wait_editor()
    terminal.type(CTRL_D)
    assert terminal.end() == 0


@pytest.fixture
def with_stand_ins(
    open_terminal: Open, record: Record, monkeypatch: pytest.MonkeyPatch
) -> Terminal:
    """It starts stand-ins by itself."""
    monkeypatch.setenv("STAND_IN", f"--record {record.path} --delay-ms 10")
    one = open_terminal("--model", "starter", command=WITH_STAND_INS)
    one.wait_editor()
    return one


def assert_left(terminal: Terminal, code: int = 0) -> None:
    assert terminal.end() == code, terminal.text
    for word in ("Traceback", "Exception ignored", "Error"):
        assert word not in terminal.text
    assert terminal.is_sane()


class TestAnswers:
    def test_continue_the_conversation(self, terminal: Terminal, record: Record) -> None:
        for question in ("one", "two", "three"):
            terminal.ask(question)
            assert "local: starter" in terminal.wait_answer()
            terminal.wait_editor()
        assert record.conversations[-1] == [
            ("user", "one"),
            ("assistant", "one"),
            ("user", "two"),
            ("assistant", "two"),
            ("user", "three"),
        ]

    def test_begin_with_the_system_prompt(
        self, echo: EchoProcess, open_terminal: Open, record: Record
    ) -> None:
        terminal = open_terminal("--model", "starter", "--system", "Be brief.")
        terminal.ask("hello")
        record.wait(1)
        assert record.conversations == [[("system", "Be brief."), ("user", "hello")]]

    @pytest.mark.parametrize("kind", ["", "fail "])
    def test_cannot_steer_the_terminal(
        self, echo: EchoProcess, open_terminal: Open, kind: str
    ) -> None:
        """Neither the text of an answer nor that of a failure."""
        terminal = open_terminal("--model", "starter")
        terminal.wait_prompt()
        terminal.ask(f"{kind}\x1b]0;title\x07\x1b[31mred")
        terminal.wait_editor()
        for sequence in ("\x1b]0;title", "\x1b[31mred"):
            assert sequence not in terminal.output

    def test_that_fail_are_said_and_the_session_goes_on(
        self, terminal: Terminal, record: Record
    ) -> None:
        terminal.ask("fail as planned")
        terminal.wait_answering("as planned")
        terminal.expect("as planned")
        terminal.wait_editor()
        terminal.ask("hello")
        terminal.wait_answer()
        assert record.questions == ["fail as planned", "hello"]

    def test_wait_for_the_model_with_its_stages_shown(
        self, open_terminal: Open, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
    ) -> None:
        parts = [sandbox.root / f"part-{number}" for number in range(2)]
        monkeypatch.setenv("STAND_IN", " ".join(f"--load-until {part}" for part in parts))
        terminal = open_terminal("--model", "starter", command=WITH_STAND_INS)
        terminal.ask("hello")
        for number, part in enumerate(parts):
            terminal.expect(rf"inference: Loading starter: part {number} \({number + 1}/2\)")
            part.touch()
        terminal.wait_answer()

    def test_by_the_cloud_without_a_key_are_refused_and_the_session_goes_on(
        self, echo: EchoProcess, open_terminal: Open
    ) -> None:
        terminal = open_terminal("--model", "starter", "--cloud")
        terminal.ask("hello")
        terminal.expect("no API key is set")
        terminal.wait_editor()
        terminal.type(CTRL_D)
        assert_left(terminal)


def kill(sandbox: Sandbox) -> int:
    """Kill the worker, whose pid that was."""
    pid = sandbox.holder()
    assert pid  # 0 would be the tests themselves
    os.kill(pid, signal.SIGKILL)
    return pid


class TestAWorkerThatDies:
    def test_in_mid_answer_is_said_and_another_goes_on(
        self, with_stand_ins: Terminal, record: Record, sandbox: Sandbox
    ) -> None:
        terminal = with_stand_ins
        terminal.ask("forever")
        terminal.wait_answering("forever forever")
        kill(sandbox)
        terminal.expect("The inference worker died")
        terminal.expect("forever forever")
        terminal.type(CTRL_C)
        terminal.wait_editor()
        terminal.ask("again")
        terminal.wait_answer()
        roles = [role for role, _ in record.conversations[-1]]
        assert roles == ["user", "assistant", "user"]  # what had come is kept

    def test_at_the_prompt_is_back_for_the_next_question(
        self, with_stand_ins: Terminal, record: Record, sandbox: Sandbox
    ) -> None:
        with_stand_ins.ask("one")
        with_stand_ins.wait_answer()
        killed = kill(sandbox)
        until(lambda: sandbox.holder() not in (None, 0, killed), "it is started again")
        with_stand_ins.ask("two")
        assert record.wait(2) == ["one", "two"]

    def test_by_shammah_stop_is_started_by_the_next_question(
        self, with_stand_ins: Terminal, record: Record, sandbox: Sandbox
    ) -> None:
        with_stand_ins.ask("one")
        with_stand_ins.wait_answer()
        subprocess.run([*SHAMMAH, "stop"], check=True, stdout=subprocess.DEVNULL)
        with_stand_ins.ask("two")
        assert record.wait(2) == ["one", "two"]

    def test_at_its_start_is_said_and_the_session_goes_on(
        self, open_terminal: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STAND_IN", "--crash-at-start 'No such device.'")
        terminal = open_terminal("--model", "starter", command=WITH_STAND_INS)
        terminal.ask("hello")
        terminal.expect("could not start: No such device.")
        terminal.wait_editor()
        terminal.type(CTRL_D)
        assert_left(terminal)


class TestCtrlC:
    def test_in_an_answer_ends_it_and_keeps_the_session(
        self, terminal: Terminal, record: Record, echo: EchoProcess
    ) -> None:
        terminal.ask("forever")
        terminal.wait_answering("forever forever")
        terminal.type(CTRL_C)
        terminal.expect(r"\(cancelled\)")
        terminal.wait_editor()
        until(lambda: echo.status().status.active == 0, "the worker has stopped, too")
        terminal.ask("next")
        terminal.wait_answer()
        conversation = record.conversations[-1]
        assert conversation[0] == ("user", "forever")
        assert conversation[1][1].startswith("forever forever")
        assert conversation[2] == ("user", "next")

    def test_while_a_question_waits_keeps_the_session(
        self, open_terminal: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STAND_IN", "--load-for-ever")
        terminal = open_terminal("--model", "starter", command=WITH_STAND_INS)
        terminal.ask("hello")
        terminal.expect("Loading starter: weights")
        terminal.type(CTRL_C)
        terminal.expect(r"\(cancelled\)")
        terminal.wait_editor()
        terminal.type(CTRL_D)
        assert_left(terminal)

    def test_at_the_prompt_says_how_to_leave(self, terminal: Terminal, record: Record) -> None:
        terminal.type("half a line", CTRL_C)
        terminal.expect("Press Ctrl-C again or Ctrl-D to exit")
        terminal.wait_editor()
        terminal.ask("whole")
        assert record.wait(1) == ["whole"]

    def test_twice_at_the_prompt_leaves(self, terminal: Terminal) -> None:
        terminal.leave_by_ctrl_c()
        assert_left(terminal)

    def test_once_in_an_answer_and_once_after_it_leaves(
        self, terminal: Terminal, echo: EchoProcess
    ) -> None:
        terminal.ask("forever")
        terminal.wait_answering("forever forever")
        terminal.type(CTRL_C)
        terminal.expect(r"\(cancelled\)")
        terminal.leave_by_ctrl_c()
        assert_left(terminal)
        until(lambda: echo.status().status.clients == 0, "its lease is given back")

    def test_wherever_it_falls_it_is_obeyed_once(
        self, echo: EchoProcess, open_terminal: Open, record: Record
    ) -> None:
        """Also where Python drops what is raised: in the end of an object."""
        terminal = open_terminal("--model", "starter", command=PRESSES_CTRL_C)
        for name in interrupted.MOMENTS:
            terminal.wait_editor()
            terminal.ask(f"at {name}")
            if name == "close":
                terminal.wait_answer()
                terminal.wait_editor()
                terminal.ask("not asked")
            terminal.expect(r"\(cancelled\)" if name == "echo_off" else "Ctrl-C again or Ctrl-D")
        terminal.wait_editor()
        terminal.type(CTRL_D)
        assert terminal.end() == 0
        assert "not asked" not in record.questions

    @pytest.mark.parametrize("pieces", range(4))
    def test_while_the_program_loads_is_never_a_traceback(
        self, echo: EchoProcess, open_terminal: Open, pieces: int
    ) -> None:
        """Right at the prompt, and a little later each time."""
        terminal = open_terminal("--model", "starter")
        terminal.wait_prompt()
        terminal.child.delaybeforesend = 0.05 * pieces
        terminal.type(CTRL_C)
        terminal.child.delaybeforesend = None
        terminal.type(CTRL_D)
        code = terminal.end()
        assert "Traceback" not in terminal.text
        assert code in (0, 130)
        assert terminal.is_sane()


class TestWaysToLeave:
    def test_ctrl_d(self, terminal: Terminal, echo: EchoProcess) -> None:
        terminal.type(CTRL_D)
        assert_left(terminal)
        until(lambda: echo.status().status.clients == 0, "its lease is given back")
        assert echo.alive()

    def test_ctrl_d_before_anything_has_loaded(
        self, echo: EchoProcess, open_terminal: Open
    ) -> None:
        terminal = open_terminal("--model", "starter")
        terminal.type(CTRL_D)
        assert_left(terminal)

    def test_ctrl_d_while_the_worker_is_being_started(
        self, open_terminal: Open, sandbox: Sandbox
    ) -> None:
        terminal = open_terminal("--model", "starter", command=WITH_STAND_INS)
        until(lambda: (sandbox.shammah_home / "logs").exists(), "it is being started")
        terminal.type(CTRL_D)
        assert_left(terminal)

    @pytest.mark.parametrize("command", ["/quit", "/quit now", "  /quit  "])
    def test_quit(self, terminal: Terminal, command: str) -> None:
        terminal.ask(command)
        assert_left(terminal)

    @pytest.mark.parametrize("when", ["at the prompt", "in an answer"])
    def test_a_terminal_that_is_closed(
        self, terminal: Terminal, echo: EchoProcess, when: str
    ) -> None:
        if when == "in an answer":
            terminal.ask("forever")
            terminal.wait_answering("forever forever")
        terminal.hang_up()
        until(lambda: echo.status().status.clients == 0, "its lease is given back")
        until(lambda: echo.status().status.active == 0, "its answer has ended")
        assert terminal.child.wait() is not None
        assert echo.alive()

    @pytest.mark.parametrize("when", ["at the prompt", "in an answer"])
    def test_sigterm_leaves_the_terminal_as_it_was(
        self, terminal: Terminal, echo: EchoProcess, when: str
    ) -> None:
        if when == "in an answer":
            terminal.ask("forever")
            terminal.wait_answering("forever forever")
        terminal.child.kill(signal.SIGTERM)
        terminal.end()
        assert "Traceback" not in terminal.text
        assert terminal.is_sane()
        until(lambda: echo.status().status.clients == 0, "its lease is given back")

    def test_with_two_prompts_the_worker_leaves_after_the_second(
        self, start_echo: StartEcho, open_terminal: Open
    ) -> None:
        echo = start_echo("--keep-alive", "0")
        one, two = (open_terminal("--model", "starter") for _ in range(2))
        one.wait_editor()
        two.wait_editor()
        until(lambda: echo.status().status.clients == 2, "both are attached")
        one.type(CTRL_D)
        one.end()
        two.ask("still there?")
        two.wait_answer()
        two.wait_editor()
        two.type(CTRL_D)
        two.end()
        assert echo.wait() == 0


@pytest.mark.parametrize("words", ["/exit", "/bye", "/q"])
def test_what_other_programs_call_quit_leaves(terminal: Terminal, words: str) -> None:
    terminal.ask(words)
    assert_left(terminal)


def test_what_other_programs_have_is_answered(terminal: Terminal) -> None:
    terminal.ask("/cost")
    terminal.expect("Nothing was spent yet")
    terminal.ask("hello")
    terminal.wait_answer()
    terminal.wait_editor()
    terminal.ask("/cost")
    terminal.expect(r"\d+ tokens")
    terminal.wait_editor()
    terminal.ask("/compact")
    terminal.expect("Nothing to do")


def test_a_file_that_is_not_there_is_asked_about(terminal: Terminal, record: Record) -> None:
    terminal.ask("What is in @nofile.txt?")
    terminal.expect("There is no file nofile.txt. Send it as text")
    terminal.ask("n")
    terminal.expect("Not sent")
    terminal.wait_editor()
    terminal.ask("hello")
    terminal.wait_answer()
    assert record.questions == ["hello"]


class TestTerminals:
    def test_a_dumb_one_gets_no_escape_codes_at_all(
        self, echo: EchoProcess, open_terminal: Open, record: Record
    ) -> None:
        terminal = open_terminal("--model", "starter", environ={"TERM": "dumb"})
        terminal.ask("one")
        terminal.wait_answer()
        terminal.wait_prompt()
        terminal.ask("two")
        terminal.wait_answer()
        terminal.wait_prompt()
        terminal.type(CTRL_D)
        assert_left(terminal)
        assert record.questions == ["one", "two"]
        assert "\x1b" not in terminal.output

    def test_a_dumb_one_shows_a_line_that_was_typed_ahead(
        self, echo: EchoProcess, open_terminal: Open, held: Held
    ) -> None:
        terminal = open_terminal("--model", "starter", environ={"TERM": "dumb"})
        terminal.ask(held.question)
        until(lambda: not terminal.echoes, "it is answered")
        terminal.ask("typed ahead")
        held.go_on()
        terminal.wait_answer()
        assert "> typed ahead\r\ntyped ahead" in terminal.wait_answer()  # line and answer
        terminal.wait_prompt()
        until(lambda: terminal.echoes, "what is typed now is seen")
        terminal.type(CTRL_D)
        assert_left(terminal)
        assert terminal.text.count("> typed ahead") == 1
        assert terminal.text.count("typed ahead\r\n") == 2

    def test_every_command_can_be_used_on_a_dumb_one(
        self, echo: EchoProcess, open_terminal: Open
    ) -> None:
        terminal = open_terminal("--model", "starter", environ={"TERM": "dumb"})
        for name in sorted(COMMANDS.keys() - REPLACING):
            terminal.ask(f"/{name}")
            terminal.wait_prompt()
        terminal.ask("still there?")
        terminal.wait_answer()
        terminal.wait_prompt()
        terminal.type(CTRL_D)
        assert_left(terminal)
        assert "\x1b" not in terminal.output

    def test_no_color_means_no_colour(self, echo: EchoProcess, open_terminal: Open) -> None:
        terminal = open_terminal("--model", "starter", environ={"NO_COLOR": "1"})
        terminal.wait_editor()
        terminal.ask("fail as planned")
        terminal.wait_answering("as planned")
        terminal.expect("as planned")
        terminal.wait_editor()
        terminal.ask("hello")
        terminal.wait_answer()
        terminal.wait_editor()
        terminal.type(CTRL_D)
        assert_left(terminal)
        assert set(STYLE.findall(terminal.output)) <= RESET_OR_REVERSE

    def test_others_get_style(self, terminal: Terminal) -> None:
        terminal.ask("hello")
        assert "\x1b[2mlocal: starter" in terminal.wait_answer()

    def test_an_output_that_is_none_is_refused(self, sandbox: Sandbox) -> None:
        """`shammah | cat` at a terminal."""
        main, side = os.openpty()
        try:
            ended = subprocess.run(SHAMMAH, stdin=side, capture_output=True, check=False)
        finally:
            os.close(main)
            os.close(side)
        assert ended.returncode == 2
        assert ended.stdout == b""
        assert b"needs a terminal" in ended.stderr


class TestWhatIsWrongFromTheStart:
    def test_a_configuration(self, sandbox: Sandbox, open_terminal: Open) -> None:
        (sandbox.shammah_home / "config.toml").write_text("modell = 1")
        terminal = open_terminal()
        assert_left(terminal, 2)
        assert terminal.text.count("> ") == 1
        assert "unknown setting modell. Did you mean model?" in unwrapped(terminal)

    def test_a_contradiction(self, open_terminal: Open) -> None:
        terminal = open_terminal("--local", "--cloud")
        assert_left(terminal, 2)
        assert "--cloud contradicts --local and --private." in unwrapped(terminal)

    def test_a_model_that_cannot_be(self, open_terminal: Open) -> None:
        terminal = open_terminal("--model", "gpt", command=WITH_STAND_INS)
        assert_left(terminal, 2)
        assert "There is no model 'gpt'." in unwrapped(terminal)

    def test_a_runtime_directory_of_somebody_else(
        self, sandbox: Sandbox, open_terminal: Open
    ) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root to give a directory away")
        (sandbox.xdg / "shammah").mkdir(mode=0o700)
        os.chown(sandbox.xdg / "shammah", 65534, -1)
        terminal = open_terminal()
        assert_left(terminal, 2)
        assert "belongs to user 65534, not to you" in unwrapped(terminal)

    def test_a_log_directory_that_cannot_be(self, sandbox: Sandbox, open_terminal: Open) -> None:
        (sandbox.shammah_home / "logs").write_text("a file, not a directory")
        terminal = open_terminal("--model", "starter", command=WITH_STAND_INS)
        terminal.ask("hello there")
        terminal.wait_answering("hello there")  # without a log, then
        terminal.wait_editor()
        terminal.type(CTRL_D)
        assert terminal.end() == 0
        assert "Traceback" not in terminal.text


def unwrapped(terminal: Terminal) -> str:
    return " ".join(terminal.text.split())


class TestCommands:
    def test_help_lists_them(self, terminal: Terminal) -> None:
        terminal.ask("/help")
        said = terminal.expect("Ctrl-D exits")
        for name in ("/help", "/status", "/join", "/takeover", "/clear", "/quit"):
            assert name in said

    def test_a_lone_slash_is_help(self, terminal: Terminal) -> None:
        terminal.ask("/")
        terminal.expect("Ctrl-D exits")

    def test_status_tells_of_both(self, terminal: Terminal) -> None:
        said = ""
        while not re.search(r"local +Ready: starter \(4,096 tokens\)", said):  # not yet attached
            terminal.ask("/status")
            said = terminal.expect("cloud +No API key is set")

    def test_clear_begins_a_new_conversation(self, terminal: Terminal, record: Record) -> None:
        terminal.ask("one")
        terminal.wait_answer()
        terminal.ask("/clear")
        terminal.expect("Started a new conversation")
        terminal.ask("two")
        record.wait(2)
        assert record.conversations[-1] == [("user", "two")]

    @pytest.mark.parametrize(
        ("line", "hint"),
        [
            ("/nonsense", "/help lists the commands"),
            ("/hlep", "Did you mean /help?"),
            ("/HELP", "/help"),
            ("/usr/bin/env", "There is no command"),
        ],
    )
    def test_an_unknown_one_is_no_question(
        self, terminal: Terminal, record: Record, line: str, hint: str
    ) -> None:
        terminal.ask(line)
        terminal.expect("There is no command")
        terminal.ask("real")
        assert record.wait(1) == ["real"]

    def test_join_and_takeover_without_another_user_say_so(self, terminal: Terminal) -> None:
        terminal.ask("/join")
        terminal.expect("Nothing to join")
        terminal.ask("/takeover")
        terminal.expect("Nothing to take over")

    def test_join_uses_the_model_of_another_terminal(
        self, start_echo: StartEcho, connect: Callable[..., object], open_terminal: Open
    ) -> None:
        start_echo(model="0.5B")
        connect(program="repl")
        terminal = open_terminal("--model", "starter")
        terminal.ask("hello")
        terminal.expect("The inference worker runs 0.5B")
        terminal.ask("/join")
        terminal.expect("Joining 0.5B")
        terminal.ask("hello")
        assert "local: 0.5B" in terminal.wait_answer()

    def test_takeover_ends_the_model_of_another_terminal(
        self, start_echo: StartEcho, connect: Callable[..., object], open_terminal: Open
    ) -> None:
        other = start_echo(model="0.5B")
        connect(program="repl")
        terminal = open_terminal("--model", "starter", command=WITH_STAND_INS)
        terminal.ask("hello")
        terminal.expect("The inference worker runs 0.5B")
        terminal.ask("/takeover")
        terminal.ask("hello")
        assert "local: starter" in terminal.wait_answer()
        assert other.wait(LIMIT_S) == 0
