"""``shammah status``, ``stop`` and ``worker``, and what all commands refuse."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shammah.bus.client import Peer
from shammah.bus.endpoints import ROLES
from shammah.bus.messages import ChatMessage, Ready
from tests.fakes.command import SHAMMAH, WITH_STAND_INS, run
from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import LIMIT_S, Sandbox, until

pytestmark = pytest.mark.timeout(300)

StartEcho = Callable[..., EchoProcess]
Connect = Callable[..., Peer]

NOBODY = 65534


def wait_ready(echo: EchoProcess) -> None:
    until(lambda: isinstance(echo.status().status.state, Ready), "ready")


class TestStatusOnce:
    def test_with_nothing_running(self) -> None:
        ended = run("status", "--once")
        assert (ended.code, ended.err) == (0, "")
        assert [line.split() for line in ended.out.splitlines()] == [
            [role, "not", "running"] for role in ROLES
        ]

    def test_shows_state_and_users(self, start_echo: StartEcho, connect: Connect) -> None:
        wait_ready(start_echo())
        connect()
        (line,) = run("status", "--once", "--role", "inference").out.splitlines()
        assert line.startswith("inference ")
        assert "Ready: starter (4,096 tokens) [1 attached, 0 active, 0 tokens]" in line

    def test_of_a_worker_at_its_end_waits_for_that(
        self, start_echo: StartEcho, connect: Connect
    ) -> None:
        """Its work does not end at once, and it reads nothing more."""
        echo = start_echo("--delay-ms", "60000")
        peer = connect()
        next(iter(peer.generate((ChatMessage("user", "a b"),))))
        echo.send(signal.SIGTERM)
        until(lambda: peer.stopped, "it stops")
        ended = run("status", "--once", "--role", "inference")
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.split() == ["inference", "not", "running"]

    def test_as_json_is_one_object_a_line(self, start_echo: StartEcho) -> None:
        wait_ready(start_echo())
        ended = run("status", "--once", "--json")
        documents = {d["role"]: d for d in map(json.loads, ended.out.splitlines())}
        assert list(documents) == list(ROLES)
        assert documents["cloud"] == {"role": "cloud", "running": False, "event": None}
        assert documents["inference"]["running"]
        event = documents["inference"]["event"]
        assert event["status"]["state"]["type"] == "Ready"
        assert event["status"]["state"]["model"] == "starter"

    def test_says_of_a_worker_that_does_not_answer_how_to_end_it(
        self, start_echo: StartEcho
    ) -> None:
        start_echo().freeze()
        ended = run("status", "--once", "--role", "inference")
        assert ended.code == 1
        assert "did not answer" in ended.out
        assert "shammah stop inference" in ended.out

    def test_starts_nothing_and_holds_no_lease(self, sandbox: Sandbox) -> None:
        run("status", "--once")
        assert sandbox.holders() == {}


class Tail:
    """``shammah status --json`` that runs on."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*SHAMMAH, "status", "--json", "--role", "inference", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def until(self, found: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """The lines up to and with the first that is it."""
        assert self.process.stdout is not None
        documents = []
        for line in self.process.stdout:
            documents.append(json.loads(line))
            if found(documents[-1]):
                return documents
        raise AssertionError("it has ended")

    def end(self) -> tuple[int, bytes]:
        self.process.send_signal(signal.SIGINT)
        _, said = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, said


@pytest.fixture
def tail() -> Iterator[Tail]:
    one = Tail()
    yield one
    one.process.kill()
    one.process.communicate()


def gone(document: dict[str, Any]) -> bool:
    return not document["running"]


def state_is(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda d: d["running"] and d["event"]["status"]["state"]["type"] == name


class TestTheTail:
    def test_sees_workers_come_work_and_go(
        self, tail: Tail, start_echo: StartEcho, connect: Connect, sandbox: Sandbox
    ) -> None:
        tail.until(gone)
        enough = sandbox.root / "enough"
        echo = start_echo("--load-until", str(enough))
        tail.until(state_is("Loading"))
        enough.touch()
        tail.until(state_is("Ready"))
        list(connect().generate((ChatMessage("user", "one two"),)))
        events = tail.until(lambda d: d["event"]["what"] == "stop")
        assert events[-1]["event"]["status"]["tokens"] == 2
        echo.kill()
        tail.until(gone)
        start_echo()
        tail.until(state_is("Ready"))
        assert tail.end() == (0, b"")

    def test_numbers_have_no_gaps_within_a_run(
        self, tail: Tail, start_echo: StartEcho, connect: Connect
    ) -> None:
        start_echo()
        tail.until(state_is("Ready"))
        peer = connect()
        for _ in range(20):
            list(peer.generate((ChatMessage("user", "one"),)))
        events = tail.until(lambda d: d["event"]["status"]["tokens"] == 20)
        seen = [d["event"]["seq"] for d in events]
        assert seen == list(range(seen[0], seen[0] + len(seen)))

    def test_with_nothing_running_says_so_and_waits(self, tail: Tail) -> None:
        tail.until(gone)
        assert tail.process.poll() is None
        assert tail.end()[0] == 0

    def test_ends_when_its_reader_does(self, start_echo: StartEcho, connect: Connect) -> None:
        start_echo()
        reader, writer = os.pipe()
        tailing = subprocess.Popen(
            [*SHAMMAH, "status"], stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE
        )
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        peer = connect()
        until(lambda: peer.generate(()) and tailing.poll() is not None, "the next event ends it")
        assert tailing.stderr is not None
        assert b"Traceback" not in tailing.stderr.read()
        tailing.stderr.close()

    def test_for_people_is_one_line_an_event(self, start_echo: StartEcho) -> None:
        start_echo()
        tailing = subprocess.Popen(
            [*SHAMMAH, "status", "--role", "inference"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert tailing.stdout is not None
        while "Ready: starter" not in (line := tailing.stdout.readline()):
            assert line.startswith("inference")
        tailing.send_signal(signal.SIGINT)
        tailing.communicate(timeout=LIMIT_S)
        assert tailing.returncode == 0


class TestStop:
    def test_with_nothing_running(self) -> None:
        assert run("stop").out == "No worker is running.\n"
        ended = run("stop", "cloud")
        assert (ended.code, ended.out) == (0, "No cloud worker is running.\n")

    def test_ends_all_and_says_how(self, start_echo: StartEcho, sandbox: Sandbox) -> None:
        workers = [start_echo(), start_echo(role="cloud")]
        ended = run("stop", command=WITH_STAND_INS)  # which is patient
        assert ended.code == 0
        assert ended.out == "inference: stopped by request\ncloud: stopped by request\n"
        assert [worker.wait() for worker in workers] == [0, 0]
        assert sandbox.holders() == {}

    def test_ends_one_role_alone(self, start_echo: StartEcho) -> None:
        inference, cloud = start_echo(), start_echo(role="cloud")
        assert run("stop", "cloud", command=WITH_STAND_INS).out == "cloud: stopped by request\n"
        assert cloud.wait() == 0
        assert inference.alive()

    def test_says_when_it_had_to_kill(self, start_echo: StartEcho) -> None:
        echo = start_echo()
        echo.freeze()
        assert run("stop").out == "inference: stopped by SIGKILL\n"
        assert echo.wait() == -signal.SIGKILL


class TestTheWorkerCommand:
    def test_of_a_role_that_runs_ends_with_3_and_a_sentence(self, start_echo: StartEcho) -> None:
        echo = start_echo()
        ended = run("worker", "--role", "inference")
        assert ended.code == 3
        assert f"inference worker is already running (process {echo.pid})." in ended.err
        assert "shammah stop inference" in ended.err
        assert "Traceback" not in ended.said
        assert echo.alive()

    def test_of_no_role_at_all_ends_with_2_and_names_the_roles(self) -> None:
        ended = run("worker", "--role", "nonsense")
        assert ended.code == 2
        for role in ROLES:
            assert role in ended.err

    @pytest.mark.parametrize(
        ("role", "state"), [("cloud", "Not available"), ("train", "No training")]
    )
    def test_with_nothing_to_do_runs_and_says_so(
        self, sandbox: Sandbox, role: str, state: str
    ) -> None:
        """A cloud worker has no key, a train worker no training."""
        worker = subprocess.Popen(
            [*SHAMMAH, "worker", "--role", role],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            until(lambda: sandbox.holder(role) == worker.pid, "it is this very process")
            until(
                lambda: state in run("status", "--once", "--role", role).out,
                "it says that there is nothing to do",
            )
        finally:
            worker.send_signal(signal.SIGINT)
            said, _ = worker.communicate(timeout=LIMIT_S)
        assert worker.returncode == 0
        assert b"Traceback" not in said

    def test_two_at_once_are_one(self, sandbox: Sandbox) -> None:
        command = [*SHAMMAH, "worker", "--role", "cloud"]
        both = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
        until(lambda: any(one.poll() is not None for one in both), "one has left")
        assert sorted(one.poll() or 0 for one in both) == [0, 3]
        assert sandbox.holder("cloud") in {one.pid for one in both if one.poll() is None}
        until(
            lambda: "Not available" in run("status", "--once", "--role", "cloud").out,
            "the other is up",
        )
        run("stop", command=WITH_STAND_INS)
        assert sorted(one.wait(LIMIT_S) for one in both) == [0, 3]


@pytest.fixture
def stolen(sandbox: Sandbox) -> Path:
    """A runtime directory that belongs to somebody else."""
    if os.geteuid() != 0:
        pytest.skip("needs root to give a directory away")
    theirs = sandbox.xdg / "shammah"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, NOBODY, -1)
    return theirs


@pytest.mark.parametrize(
    "arguments",
    [
        ("ask", "hello"),
        ("status", "--once"),
        ("status",),
        ("stop",),
        ("worker", "--role", "inference"),
        ("worker", "--role", "cloud"),
    ],
    ids=" ".join,
)
def test_a_runtime_directory_of_somebody_else_is_one_clear_message(
    stolen: Path, sandbox: Sandbox, arguments: tuple[str, ...]
) -> None:
    ended = run(*arguments)
    assert ended.code == 2
    assert "Traceback" not in ended.said
    assert str(stolen) in ended.err
    assert f"belongs to user {NOBODY}" in ended.err
    assert stat.S_IMODE(stolen.stat().st_mode) == 0o700
    assert list(stolen.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [("--version",), ("--help",), ("status", "--once"), ("models", "plan"), ("adapters", "list")],
    ids=" ".join,
)
def test_a_disk_that_is_full_is_one_clear_message(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [*SHAMMAH, *arguments],
            env={**os.environ, "SHAMMAH_MODEL": "starter"},
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert ended.stderr == b"shammah: No space left on device.\n"
    assert ended.returncode == 1


def test_version_and_help_need_nothing(stolen: Path) -> None:
    assert run("--version").out.startswith("shammah ")
    for command in ((), ("ask",), ("status",), ("stop",), ("worker",)):
        ended = run(*command, "--help")
        assert ended.code == 0
        assert "Usage: shammah" in ended.out
