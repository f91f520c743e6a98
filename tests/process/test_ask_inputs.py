"""``shammah ask``: files, pipes that are no text, readers that leave, answers in one piece."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from shammah.bus.messages import Ready
from tests.standins.command import SHAMMAH, run
from tests.standins.echo_process import EchoProcess
from tests.standins.sandbox import LIMIT_S, Sandbox, until

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
    [(b"\x7fELF\0", "is no text"), (b"x" * 5_000_000, "holds more than 4.2 MB")],
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
    assert "Standard input: 1 byte of it are no UTF-8." in ended.err


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
