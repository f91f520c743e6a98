"""``shammah ask`` as a shell sees it: streams, exit status, signals."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Callable
from dataclasses import asdict

import pytest

from shammah.bus.messages import Ready, Usage
from tests.fakes.command import SHAMMAH, WITH_STAND_INS, Ran, run
from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import LIMIT_S, Sandbox, until

pytestmark = pytest.mark.timeout(300)

StartEcho = Callable[..., EchoProcess]

ASK = ("ask", "--model", "starter")


@pytest.fixture
def echo(start_echo: StartEcho) -> EchoProcess:
    """A worker that is ready, so that nothing needs to be started."""
    worker = start_echo()
    until(lambda: isinstance(worker.status().status.state, Ready), "ready")
    return worker


def assert_one_clear_message(ended: Ran, code: int, *words: str) -> None:
    assert ended.code == code, ended.said
    assert "Traceback" not in ended.said
    for word in words:
        assert word in ended.err
    assert ended.out == ""


@pytest.mark.usefixtures("echo")
class TestAnAnswer:
    def test_is_alone_on_stdout(self) -> None:
        ended = run(*ASK, "hello there, Zürich ☃")
        assert (ended.code, ended.out) == (0, "hello there, Zürich ☃\n")
        assert "local: starter" in ended.err
        assert "local model ready" in ended.err

    def test_in_a_pipe_has_no_escape_codes(self) -> None:
        ended = run(*ASK, "hello")
        assert "\x1b" not in ended.said
        assert "\r" not in ended.said

    def test_in_a_pipe_is_what_the_model_wrote(self) -> None:
        assert run(*ASK, "\x1b[31mred").out == "\x1b[31mred\n"

    def test_takes_what_comes_through_a_pipe_after_the_question(self) -> None:
        assert run(*ASK, "Review this:", stdin="a\nb\n").out == "Review this:\n\na\nb\n"

    def test_may_be_asked_through_a_pipe_alone(self) -> None:
        assert run(*ASK, stdin="  from a pipe \n").out == "  from a pipe \n"

    def test_bare_shammah_in_a_pipe_asks(self) -> None:
        assert run("--model", "starter", stdin="from a pipe").out == "from a pipe\n"

    def test_has_the_system_prompt_before_the_question(self, sandbox: Sandbox) -> None:
        def messages(*arguments: str) -> object:
            document = json.loads(run(*ASK, *arguments, "hello", "--json").out)
            return document["usage"]["input_tokens"]

        assert messages() == 1
        assert messages("--system", "Be brief.") == 2
        (sandbox.shammah_home / "config.toml").write_text('system = "Be brief."')
        assert messages() == 2
        assert messages("--system", "") == 1

    def test_as_json_is_one_object(self) -> None:
        ended = run(*ASK, "--json", "one two 'three' \"☃\"")
        document = json.loads(ended.out)
        assert ended.out.count("\n") == 1
        assert document["text"] == "one two 'three' \"☃\""
        assert document["target"] == "local"
        assert document["reason"] == "model_ready"
        assert document["model"] == "starter"
        assert document["usage"] == asdict(Usage(1, 4))
        assert document["left_out"] == 0
        assert document["finish_reason"] == "stop"
        for name in ("ttft_s", "prefill_tokens_per_second", "decode_tokens_per_second"):
            assert name in document["timings"]

    @pytest.mark.parametrize(("flag", "reason"), [("--local", "user"), ("--private", "private")])
    def test_says_why_the_local_model_gave_it(self, flag: str, reason: str) -> None:
        document = json.loads(run(*ASK, flag, "--json", "hello").out)
        assert (document["target"], document["reason"]) == ("local", reason)

    def test_goes_to_a_file(self, sandbox: Sandbox) -> None:
        with (sandbox.root / "answer").open("wb") as answer:
            command = [*SHAMMAH, *ASK, "hello"]
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=answer, check=True)
        assert (sandbox.root / "answer").read_text() == "hello\n"


@pytest.mark.usefixtures("echo")
class TestAFailure:
    def test_is_on_stderr_with_status_1(self) -> None:
        ended = run(*ASK, "fail as planned")
        assert (ended.code, ended.out) == (1, "fail as planned\n")
        assert "as planned" in ended.err

    def test_as_json_is_one_object_too(self) -> None:
        ended = run(*ASK, "--json", "fail as planned")
        assert ended.code == 1
        error = {"code": "planted", "message": "as planned", "hint": ""}
        told = json.loads(ended.out)
        assert (told["error"], told["text"]) == (error, "fail as planned")
        assert (told["target"], told["reason"]) == ("local", "model_ready")

    @pytest.mark.parametrize(
        ("arguments", "code", "failure"),
        [
            (("--resume", "9", "hi"), 1, "history_empty"),
            (("-f", "none", "hi"), 2, "file_unreadable"),
        ],
    )
    def test_before_the_question_is_an_object_as_well(
        self, arguments: tuple[str, ...], code: int, failure: str
    ) -> None:
        ended = run(*ASK, "--json", *arguments)
        assert ended.code == code
        told = json.loads(ended.out)
        assert (told["error"]["code"], told["text"]) == (failure, "")
        assert told["error"]["message"] in ended.err

    def test_with_escape_codes_cannot_steer_the_terminal(self) -> None:
        """The text of a server's error ends on the screen like this."""
        ended = run(*ASK, "fail \x1b]0;title\x07\x1b[2J")
        assert "\x1b" not in ended.err


class TestWrongUsage:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("ask",), "No question given"),
            (("ask", "   "), "No question given"),
            (("ask", "!private "), "No question given"),
            (("ask", "hello", "--local", "--cloud"), "--cloud contradicts --local"),
            (("ask", "hello", "--private", "--cloud"), "--cloud contradicts"),
            (("ask", "hello", "--model", "gpt"), "There is no model 'gpt'."),
            (("ask", "hello", "--temperature", "-1"), "--temperature"),
            (("ask", "hello", "--temperature", "nan"), "--temperature"),
            (("ask", "hello", "--temperature", "inf"), "--temperature"),
            (("ask", "hello", "--min-p", "1.5"), "--min-p"),
            (("ask", "hello", "--presence-penalty", "nan"), "--presence-penalty"),
            (("ask", "hello", "--max-tokens", "0"), "--max-tokens"),
            (("ask", "hello", "--max-tokens", "1" + "0" * 30), "--max-tokens"),
            (("ask", "hello", "--nonsense"), "--nonsense"),
            (("nonsense",), "nonsense"),
            (("stop", "nonsense"), "nonsense"),
            (("status", "--role", "nonsense"), "nonsense"),
            (("worker", "--role", "nonsense"), "nonsense"),
            (("worker",), "--role"),
            (("--model",), "--model"),
        ],
        ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
    )
    def test_is_said_with_status_2(self, arguments: tuple[str, ...], says: str) -> None:
        ended = run(*arguments, command=WITH_STAND_INS)
        assert_one_clear_message(ended, 2, says)

    def test_of_the_configuration(self, sandbox: Sandbox) -> None:
        (sandbox.shammah_home / "config.toml").write_text("modell = 1")
        for arguments in (("ask", "hello"), ("worker", "--role", "inference"), ()):
            ended = run(*arguments, stdin="hello")
            assert_one_clear_message(ended, 2, "unknown setting modell", "Did you mean model?")

    def test_the_cloud_without_a_key(self, echo: EchoProcess) -> None:
        ended = run("ask", "--cloud", "hello")
        assert_one_clear_message(ended, 1, "no API key is set", "ANTHROPIC_API_KEY")


class TestBrokenStreams:
    def test_a_reader_that_has_seen_enough(self, start_echo: StartEcho) -> None:
        start_echo("--delay-ms", "1")
        reader, writer = os.pipe()
        asking = subprocess.Popen(
            [*SHAMMAH, *ASK, "forever"],
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE,
        )
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        _, said = asking.communicate(timeout=LIMIT_S)
        assert b"Traceback" not in said
        assert b"Exception ignored" not in said

    def test_a_reader_that_never_read(self, echo: EchoProcess) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        command = [*SHAMMAH, *ASK, "hello"]
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, check=False
        )
        os.close(writer)
        assert b"Traceback" not in ended.stderr
        assert b"Exception ignored" not in ended.stderr

    @pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
    def test_a_stream_that_is_closed_from_the_start(
        self, echo: EchoProcess, redirection: str
    ) -> None:
        script = f'"$@" ask --model starter hello {redirection}'
        ended = run(*SHAMMAH, command=("sh", "-c", script, "sh"))
        assert "Traceback" not in ended.said
        if ">&-" not in redirection.replace("2>&-", ""):
            assert (ended.code, ended.out) == (0, "hello\n")
        assert echo.alive()

    def test_a_disk_that_is_full(self, echo: EchoProcess) -> None:
        with open("/dev/full", "wb") as full:
            ended = subprocess.run(
                [*SHAMMAH, *ASK, "hello"],
                stdin=subprocess.DEVNULL,
                stdout=full,
                stderr=subprocess.PIPE,
                check=False,
            )
        assert b"Traceback" not in ended.stderr
        assert b"No space left" in ended.stderr
        assert ended.returncode == 1

    @pytest.mark.parametrize("where", ["argument", "pipe"])
    def test_bytes_that_are_no_text_are_asked_all_the_same(
        self, echo: EchoProcess, where: str
    ) -> None:
        given = b"caf\xe9"
        command = [*map(os.fsencode, (*SHAMMAH, *ASK)), *([given] if where == "argument" else [])]
        ended = subprocess.run(
            command, input=given if where == "pipe" else b"", capture_output=True, check=False
        )
        assert b"Traceback" not in ended.stderr
        assert ended.returncode == 0
        assert ended.stdout.startswith(b"caf")

    def test_an_answer_that_the_locale_cannot_write(
        self, echo: EchoProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYTHONIOENCODING", "ascii")
        ended = run(*ASK, "snow ☃ man")
        assert "Traceback" not in ended.err
        assert ended.code == 0
        assert ended.out.startswith("snow ")

    def test_a_terminal_gets_no_escape_codes_of_the_model(self, echo: EchoProcess) -> None:
        main, side = pty.openpty()
        command = [*SHAMMAH, *ASK, "\x1b]0;title\x07red"]
        subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=side, stderr=subprocess.DEVNULL, check=True
        )
        seen = b""
        while not seen.endswith(b"\n"):
            seen += os.read(main, 4096)
        assert seen == b"]0;titlered\r\n"
        os.close(main)
        os.close(side)


class TestInterrupts:
    def test_ctrl_c_in_an_answer(self, start_echo: StartEcho) -> None:
        echo = start_echo("--delay-ms", "5")
        asking = subprocess.Popen(
            [*SHAMMAH, *ASK, "forever"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert asking.stdout is not None
        asking.stdout.read(1)
        asking.send_signal(signal.SIGINT)
        out, said = asking.communicate(timeout=LIMIT_S)
        assert asking.returncode == 130
        assert b"Traceback" not in said
        assert out.endswith(b"\n")
        assert b"ancelled" in said
        until(lambda: echo.status().status.active == 0, "the worker has stopped, too")

    def test_ctrl_c_while_the_model_loads(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STAND_IN", "--load-for-ever")
        asking = subprocess.Popen(
            [*WITH_STAND_INS, *ASK, "hello"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert asking.stderr is not None
        while b"Loading" not in asking.stderr.readline():
            pass
        asking.send_signal(signal.SIGINT)
        out, said = asking.communicate(timeout=LIMIT_S)
        assert (asking.returncode, out) == (130, b"")
        assert b"Traceback" not in said
        assert sandbox.holder()  # it goes on for the next question

    def test_ctrl_c_while_reading_a_pipe(self) -> None:
        asking = subprocess.Popen(
            [*SHAMMAH, *ASK, "hello"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert asking.stdin is not None
        asking.stdin.write(b"x" * 500_000)  # more than a pipe holds: it reads
        asking.stdin.flush()
        asking.send_signal(signal.SIGINT)
        _, said = asking.communicate(timeout=LIMIT_S)
        assert asking.returncode == 130
        assert b"Traceback" not in said


def test_a_worker_that_dies_in_mid_answer_is_told_and_another_goes_on(
    start_echo: StartEcho,
) -> None:
    echo = start_echo("--pause-after", "20")
    words = " ".join(f"w{number}" for number in range(200))
    asking = subprocess.Popen(
        [*WITH_STAND_INS, *ASK, words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert asking.stdout is not None
    first = os.read(asking.stdout.fileno(), 1)
    echo.kill()
    answer, said = asking.communicate(timeout=LIMIT_S)
    assert asking.returncode == 0
    assert (first + answer).decode() == words + "\n"
    assert b"The inference worker died. The local model restarts" in said


def test_progress_in_a_log_is_a_line_for_each_stage(
    monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    parts = [sandbox.root / f"part-{number}" for number in range(3)]
    monkeypatch.setenv("STAND_IN", " ".join(f"--load-until {part}" for part in parts))
    asking = subprocess.Popen(
        [*WITH_STAND_INS, *ASK, "hello"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert asking.stderr is not None
    lines = []
    for number, part in enumerate(parts):
        stage = f"inference: Loading starter: part {number} ({number + 1}/3)\n"
        while stage not in lines:
            lines.append(asking.stderr.readline())
            assert lines[-1], "it has ended"
        part.touch()
    out, rest = asking.communicate(timeout=LIMIT_S)
    assert (asking.returncode, out) == (0, "hello\n")
    lines += rest.splitlines(keepends=True)
    assert len(lines) == len(set(lines))  # many events told of each part
    assert "\x1b" not in "".join(lines)


def test_the_worker_stays_for_the_next_question(sandbox: Sandbox) -> None:
    first = run(*ASK, "hello", command=WITH_STAND_INS)
    pid = sandbox.holder()
    second = run(*ASK, "again", command=WITH_STAND_INS)
    assert (first.code, second.code) == (0, 0)
    assert sandbox.holder() == pid


def test_another_model_in_use_is_said_with_who_uses_it(
    start_echo: StartEcho, connect: Callable[..., object]
) -> None:
    start_echo(model="0.5B")
    connect(program="repl")
    ended = run(*ASK, "hello")
    holder = f"a prompt (process {os.getpid()})"
    assert_one_clear_message(ended, 1, "0.5B", holder, "shammah stop inference")
