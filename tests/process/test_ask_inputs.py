"""``shammah ask``: files, pipes that are no text, readers that leave, answers in one piece."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable

import pyte
import pytest

from shammah.bus.messages import Ready
from tests.fakes.command import SHAMMAH, Ran, run
from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import LIMIT_S, Sandbox, until
from tests.fakes.terminal import Terminal

pytestmark = pytest.mark.timeout(300)

StartEcho = Callable[..., EchoProcess]

ASK = ("ask", "--model", "starter")


@pytest.fixture
def echo(start_echo: StartEcho) -> EchoProcess:
    """A worker that is ready, so that nothing needs to be started."""
    worker = start_echo()
    until(lambda: isinstance(worker.status().status.state, Ready), "ready")
    return worker


@pytest.mark.usefixtures("echo")
class TestFiles:
    def test_stand_between_the_question_and_the_pipe(self, sandbox: Sandbox) -> None:
        one, two = sandbox.root / "one.py", sandbox.root / "two.py"
        one.write_text("x = 1\n")
        two.write_text("y = 2\n")
        ended = run(*ASK, "-f", str(one), "--file", str(two), "Why?", stdin="piped")
        files = f"File {one}:\n```\nx = 1\n```\n\nFile {two}:\n```\ny = 2\n```"
        assert ended.out == f"Why?\n\n{files}\n\npiped\n"

    def test_of_a_private_path_make_the_question_private(self, sandbox: Sandbox) -> None:
        diary = sandbox.home / "diary"
        diary.mkdir()
        (diary / "today").write_text("nothing")
        (sandbox.root / "link").symlink_to(diary / "today")
        (sandbox.shammah_home / "config.toml").write_text('[privacy]\npaths = ["~/diary"]\n')
        for path in (diary / "today", sandbox.root / "link"):
            ended = run(*ASK, "--json", "-f", str(path), "What?")
            assert json.loads(ended.out)["reason"] == "private"
            assert "Private, because it comes from one of your paths" in ended.err

    def test_may_be_a_command_of_the_shell(self) -> None:
        script = '"$@" -f <(echo from a command) --json'
        ended = run(*SHAMMAH, *ASK, "Why?", command=("bash", "-c", script, "bash"))
        assert "from a command" in json.loads(ended.out)["text"]


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"\x7fELF\0", "is not text"), (b"x" * 5_000_000, "is larger than 4.2 MB")],
    ids=["binary", "long"],
)
@pytest.mark.parametrize("where", ["file", "pipe"])
def test_what_cannot_be_asked_about_is_an_error(
    sandbox: Sandbox, where: str, content: bytes, says: str
) -> None:
    path = sandbox.root / "content"
    path.write_bytes(content)
    if where == "file":
        ended = run(*ASK, "What?", "-f", str(path))
    else:
        # Not written by us: it reads no further than it must.
        ended = run(*SHAMMAH, *ASK, command=("sh", "-c", f'cat {path} | "$@"', "sh"))
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.err
    assert "Traceback" not in ended.err


def test_bytes_that_are_no_utf_8_are_told(echo: EchoProcess) -> None:
    ended = run(*ASK, stdin=b"caf\xe9")
    assert (ended.code, ended.out) == (0, "caf\ufffd\n")
    assert "Standard input contains 1 byte that is not UTF-8." in ended.err
    ended = run(*ASK, "caf\udce9")
    assert (ended.code, ended.out) == (0, "caf\ufffd\n")
    assert "The question contains 1 byte that is not UTF-8." in ended.err


@pytest.mark.parametrize("encoding", ["ascii:strict", "ascii"])
def test_what_the_locale_cannot_write_is_replaced(
    echo: EchoProcess, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    assert run(*ASK, stdin="a ☃ b").out == "a ? b\n"
    for command in (("status", "--once"), ("--help",), ("history", "show", "1"), ("doctor",)):
        assert "Traceback" not in run(*command).said


def test_an_answer_in_one_piece(echo: EchoProcess) -> None:
    ended = run(*ASK, "--no-stream", "one two three")
    assert (ended.code, ended.out) == (0, "one two three\n")
    assert "\x1b" not in ended.err


def test_one_in_one_piece_that_fails_shows_what_there_was(echo: EchoProcess) -> None:
    ended = run(*ASK, "--no-stream", "fail now")
    assert (ended.code, ended.out) == (1, "fail now\n")


def test_json_has_the_usage_the_provenance_and_what_else_could_have_answered(
    echo: EchoProcess,
) -> None:
    document = json.loads(run(*ASK, "--json", "hello").out)
    assert document["provenance"]["model"] == "starter"
    assert document["usage"]["output_tokens"] == 1
    local, cloud = document["alternatives"]
    assert (local["target"], cloud["target"]) == ("local", "cloud")
    assert cloud["obstacle"] == "no_cloud"


@pytest.mark.parametrize("option", [(), ("--json",), ("--no-stream",)], ids=str)
def test_a_reader_that_has_seen_enough_ends_it_as_shells_expect(
    start_echo: StartEcho, option: tuple[str, ...]
) -> None:
    echo = start_echo()
    # What comes in one piece is written when the reader has long gone.
    words, reader = ("hello", ":") if option else ("forever", "head -c 5")
    script = f'"$@" | {reader}; exit ${{PIPESTATUS[0]}}'
    ended = run(*SHAMMAH, *ASK, *option, words, command=("bash", "-c", script, "bash"))
    assert ended.code == 128 + signal.SIGPIPE
    assert ended.out == ("" if option else "forev")
    assert "Traceback" not in ended.err
    assert "Exception ignored" not in ended.err
    until(lambda: echo.status().status.active == 0, "the worker has stopped, too")


def test_ctrl_c_while_a_named_pipe_is_read(sandbox: Sandbox) -> None:
    pipe = sandbox.root / "pipe"
    os.mkfifo(pipe)
    asking = subprocess.Popen(
        [*SHAMMAH, *ASK, "hello", "-f", str(pipe)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with pipe.open("wb") as writer:  # returns when it has opened the other end
        writer.write(b"x" * 200_000)  # more than a pipe holds: it reads
        asking.send_signal(signal.SIGINT)
        out, said = asking.communicate(timeout=LIMIT_S)
    assert (asking.returncode, out) == (130, b"")
    assert b"Traceback" not in said


@pytest.mark.parametrize("option", ["-f", "--schema"])
def test_a_named_pipe_that_nothing_writes_to_is_named(sandbox: Sandbox, option: str) -> None:
    pipe = sandbox.root / "pipe"
    os.mkfifo(pipe)
    asking = subprocess.Popen(
        [*SHAMMAH, *ASK, "hello", option, str(pipe)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert asking.stderr is not None
    assert asking.stderr.readline() == f"Waiting for a program that writes to {pipe}.\n"
    asking.send_signal(signal.SIGINT)
    out, said = asking.communicate(timeout=LIMIT_S)
    assert (asking.returncode, out) == (130, "")
    assert "Traceback" not in said


@pytest.mark.usefixtures("echo")
def test_one_that_is_written_to_late_is_read_all_the_same(sandbox: Sandbox) -> None:
    pipe = sandbox.root / "pipe"
    os.mkfifo(pipe)
    asking = subprocess.Popen(
        [*SHAMMAH, *ASK, "hello", "-f", str(pipe)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert asking.stderr is not None
    asking.stderr.readline()
    with pipe.open("wb", buffering=0) as writer:
        writer.write(b"late")
        assert asking.stderr.readline() == f"Waiting for the end of {pipe}.\n"
    assert "late" in asking.communicate(timeout=LIMIT_S)[0]


@pytest.mark.usefixtures("echo")
class TestStandardInput:
    """When it is read, and what is said meanwhile."""

    def shell(self, script: str) -> Ran:
        """``ask`` is the command in ``script``, which has nothing to read itself."""
        ask = shlex.join([*SHAMMAH, *ASK])
        return run("-c", f'ask() {{ {ask} "$@"; }}\n{script}', command=("bash",))

    def test_keeps_the_blanks_that_it_begins_with(self) -> None:
        assert run(*ASK, stdin="    return x\n").out == "    return x\n"
        assert run(*ASK, "Why?", stdin=" a\n-b\n").out == "Why?\n\n a\n-b\n"

    @pytest.mark.parametrize("kind", ["a pipe", "a socket"])
    def test_that_does_not_end_is_named(self, kind: str) -> None:
        ours, theirs = socket.socketpair() if kind == "a socket" else map(Closing, os.pipe())
        if kind == "a pipe":
            ours, theirs = theirs, ours  # the end that is written to is ours
        with ours, theirs:
            asking = subprocess.Popen(
                [*SHAMMAH, *ASK, "2+2?"],
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            theirs.close()
            assert asking.stderr is not None
            assert f"end of standard input ({kind})" in asking.stderr.readline()
            os.write(ours.fileno(), b"late")
            ours.close()
            out, _ = asking.communicate(timeout=LIMIT_S)
        assert (asking.returncode, out) == (0, "2+2?\n\nlate\n")

    def test_that_its_owner_has_set_not_to_block_is_waited_for(self) -> None:
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        with Closing(writing):
            asking = subprocess.Popen(
                [*SHAMMAH, *ASK], stdin=reading, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            os.close(reading)
            assert asking.stderr is not None
            assert b"Waiting" in asking.stderr.readline()
            os.write(writing, b"late")
        assert asking.communicate(timeout=LIMIT_S)[0] == b"late\n"

    def test_of_a_loop_is_the_loops(self, sandbox: Sandbox) -> None:
        (sandbox.root / "list").write_text("one\ntwo\nthree\n")
        loop = f'while read f; do ask "about $f"; done < {sandbox.root}/list'
        ended = self.shell(loop)
        assert ended.out == "about one\nabout two\nabout three\n"
        assert "Standard input was not read" in ended.err
        alone = 'while read f; do ask -n "about $f"; done'
        for quiet in (f"{alone} < {sandbox.root}/list", f"cat {sandbox.root}/list | {alone}"):
            ended = self.shell(quiet)
            assert ended.out == "about one\nabout two\nabout three\n"
            assert "tandard input" not in ended.err

    def test_that_something_has_begun_to_read_is_read_when_that_is_said(
        self, sandbox: Sandbox
    ) -> None:
        (sandbox.root / "list").write_text("one\ntwo\n")
        script = f'(read f; ask -f - "about $f") < {sandbox.root}/list'
        assert self.shell(script).out == "about one\n\ntwo\n"
        script = f"(read f; ask) < {sandbox.root}/list"  # what else could be the question?
        assert self.shell(script).out == "two\n"

    @pytest.mark.parametrize("how", ["0>/dev/null", "<&-", "< /dev/null"])
    def test_without_anything_to_read_is_none(self, how: str) -> None:
        ended = self.shell(f"ask hello {how}")
        assert (ended.code, ended.out) == (0, "hello\n")
        assert "tandard input" not in ended.err

    def test_that_cannot_be_read_is_an_error(self) -> None:
        with socket.socket() as nowhere:
            ended = subprocess.run(
                [*SHAMMAH, *ASK, "hello"], stdin=nowhere, capture_output=True, timeout=LIMIT_S
            )
        assert (ended.returncode, ended.stdout) == (2, b"")
        assert b"Can't read standard input: " in ended.stderr


class Closing:
    """A descriptor that is closed once."""

    def __init__(self, descriptor: int) -> None:
        self._open = [descriptor]

    def fileno(self) -> int:
        return self._open[0]

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop())

    def __enter__(self) -> Closing:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class TestOnATerminal:
    """What a person sees who has one, 80 columns wide."""

    WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi"

    def lines(self, *arguments: str, command: tuple[str, ...] = SHAMMAH) -> list[str]:
        terminal = Terminal(*arguments, command=command)
        try:
            assert terminal.end() == 0
            screen = pyte.Screen(80, 24)
            pyte.Stream(screen).feed(terminal.output)
            return [line.rstrip() for line in screen.display]
        finally:
            terminal.destroy()

    @pytest.mark.usefixtures("echo")
    @pytest.mark.parametrize("option", [(), ("--no-stream",)])
    def test_an_answer_is_broken_between_words(self, option: tuple[str, ...]) -> None:
        lines = self.lines(*ASK, *option, self.WORDS)
        begin = next(number for number, line in enumerate(lines) if line.startswith("alpha"))
        shown = lines[begin : begin + 2]
        assert " ".join(shown) == self.WORDS
        assert shown[1] == "omicron pi"

    @pytest.mark.usefixtures("echo")
    def test_what_would_turn_text_round_is_shown(self) -> None:
        lines = self.lines(*ASK, "photo\u202egpj.exe pay\u200bpal")
        assert any("photo<U+202E>gpj.exe pay<U+200B>pal" in line for line in lines)
        assert "\u202e" not in "".join(lines)

    def test_a_message_has_the_width_of_its_own_stream(self) -> None:
        name = "/".join(["directory name"] * 9)
        script = f"{shlex.join([*SHAMMAH, 'ask', '-f', name])} | cat; exit 0"
        lines = self.lines("-c", script, command=("bash",))
        assert f"shammah: Can't read {name}: " in " ".join(filter(None, lines))

    def test_in_a_pipe_no_line_is_broken(self) -> None:
        name = "/".join(["directory name"] * 9)
        assert f"shammah: Can't read {name}: " in run("ask", "-f", name).err
