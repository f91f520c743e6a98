"""Starting, sharing, replacing and stopping workers, from inside a frontend."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from shammah.bus.client import Peer
from shammah.bus.messages import ChatMessage, ClientInfo, Done, Generate
from shammah.errors import ShammahError
from shammah.settings.load import load_settings
from shammah.supervision import lifecycle
from shammah.supervision.lifecycle import (
    Rung,
    WorkerSpec,
    ensure,
    spawn,
    stop,
    worker_command,
    worker_spec,
)
from shammah.supervision.refusals import WorkerInUseError
from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import Sandbox, until
from workers.logs import MAX_BYTES

pytestmark = pytest.mark.timeout(300)

StartEcho = Callable[..., EchoProcess]
Connect = Callable[..., Peer]
Ensure = Callable[..., Peer]


def spec_for(model: str = "starter", role: str = "inference") -> WorkerSpec:
    return worker_spec(load_settings(os.environ, model), role, os.environ)


@pytest.fixture
def ensured(sandbox: Sandbox) -> Iterator[Ensure]:
    """`ensure` for this test; the connections are closed after it."""
    peers: list[Peer] = []

    def make(spec: WorkerSpec | None = None, program: str = "test", **options: float) -> Peer:
        client = ClientInfo(program, os.getpid(), "/dev/pts/7")
        peers.append(ensure(spec or spec_for(), sandbox.endpoints, client, **options))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


@pytest.mark.usefixtures("echo_spawns")
class TestEnsure:
    def test_starts_a_worker_where_none_is(self, ensured: Ensure, sandbox: Sandbox) -> None:
        peer = ensured()
        assert peer.welcome is not None
        assert peer.welcome.identity == spec_for().identity
        assert peer.welcome.pid == sandbox.holder()
        assert isinstance(list(peer.generate((ChatMessage("user", "hi"),)))[-1], Done)

    def test_a_licence_of_the_command_line_reaches_the_worker(self, ensured: Ensure) -> None:
        spec = worker_spec(load_settings(os.environ, "auto", "permissive"), "inference", os.environ)
        welcome = ensured(spec).welcome
        assert welcome is not None
        assert welcome.identity == spec.identity != spec_for("auto").identity

    def test_attaches_to_a_running_worker_of_the_same_identity(
        self, ensured: Ensure, start_echo: StartEcho
    ) -> None:
        echo = start_echo()
        welcome = ensured().welcome
        assert welcome is not None
        assert welcome.pid == echo.pid

    def test_several_frontends_at_once_start_one_worker(
        self, ensured: Ensure, sandbox: Sandbox
    ) -> None:
        failures: list[BaseException] = []

        def attach() -> None:
            try:
                ensured()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=attach) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        until(lambda: len(sandbox.processes()) == 1, "those that came too late have left")

    def test_replaces_an_unused_worker_of_another_identity(
        self, ensured: Ensure, start_echo: StartEcho, sandbox: Sandbox
    ) -> None:
        other = start_echo(model="0.5B")
        peer = ensured()
        assert peer.welcome is not None
        assert peer.welcome.identity.model == "starter"
        assert other.wait() == 0
        assert sandbox.holder() == peer.welcome.pid

    def test_leaves_a_used_worker_of_another_identity_and_says_who_uses_it(
        self, ensured: Ensure, start_echo: StartEcho, connect: Connect
    ) -> None:
        other = start_echo(model="0.5B")
        user = connect(program="repl")
        with pytest.raises(WorkerInUseError) as refused:
            ensured()
        said = str(refused.value)
        holder = f"a prompt (process {os.getpid()})"
        for words in ("0.5B", "starter", holder, "shammah stop inference"):
            assert words in said
        assert refused.value.welcome.identity.model == "0.5B"
        assert other.alive()
        assert isinstance(list(user.generate((ChatMessage("user", "hi"),)))[-1], Done)
        # We hold no lease on what we refused.
        until(lambda: other.status().status.clients == 1, "one lease is left")

    def test_a_worker_that_dies_at_start_is_an_error_with_its_last_words(
        self, ensured: Ensure, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
    ) -> None:
        monkeypatch.setenv("STAND_IN", "--crash-at-start 'No more memory.'")
        spec = spec_for()
        spec.log_file.parent.mkdir()
        spec.log_file.write_text("what an earlier one said\n")
        with pytest.raises(ShammahError) as failed:
            ensured(spec)
        assert failed.value.code == "worker_start_failed"
        assert failed.value.message == "The inference worker could not start: No more memory."
        assert str(spec.log_file) in failed.value.hint
        assert sandbox.log().startswith("what an earlier one said\nTraceback")

    def test_a_worker_that_dies_without_a_word_is_an_error_with_its_status(
        self, ensured: Ensure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        silent = [sys.executable, "-c", "import sys; sys.exit(9)"]
        monkeypatch.setattr(lifecycle, "worker_command", lambda spec: silent)
        with pytest.raises(ShammahError, match="status 9"):
            ensured()

    def test_one_that_is_killed_at_once_is_started_again(
        self, ensured: Ensure, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
    ) -> None:
        died = sandbox.root / "died"
        script = f"import os, sys; open({str(died)!r}, 'a').write('x'); os.kill(os.getpid(), 9)"
        real = lifecycle.worker_command

        def command(spec: WorkerSpec) -> list[str]:
            return real(spec) if died.exists() else [sys.executable, "-c", script]

        monkeypatch.setattr(lifecycle, "worker_command", command)
        assert isinstance(list(ensured().generate((ChatMessage("user", "hi"),)))[-1], Done)
        assert died.read_text() == "x"

    def test_one_that_is_killed_again_and_again_is_an_error_with_its_own_reason(
        self, ensured: Ensure, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
    ) -> None:
        """Whatever others write to the log meanwhile."""
        line = "2026-11-28 10:00:00,000 INFO inference[1] workers.host: started"
        script = f"import os; print({line!r}, flush=True); os.kill(os.getpid(), 9)"
        monkeypatch.setattr(
            lifecycle, "worker_command", lambda spec: [sys.executable, "-c", script]
        )
        with pytest.raises(ShammahError, match=r"killed repeatedly \(SIGKILL\)"):
            ensured()
        assert sandbox.log().count("started") == lifecycle.RESTARTS + 1

    def test_a_line_of_another_process_is_not_its_reason(
        self, ensured: Ensure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines = (
            "shammah worker: Its own words.",
            "2026-11-28 10:00:00,000 ERROR inference[1] workers.host: another's",
            "2026-11-28 10:00:00,000 INFO inference[1] workers.host: started",
        )
        script = f"import sys; print({chr(10).join(lines)!r}); sys.exit(1)"
        monkeypatch.setattr(
            lifecycle, "worker_command", lambda spec: [sys.executable, "-c", script]
        )
        with pytest.raises(ShammahError, match=r"could not start: Its own words\."):
            ensured()

    def test_a_runtime_directory_that_cannot_be_used_any_more_is_said_in_words(
        self, ensured: Ensure, sandbox: Sandbox
    ) -> None:
        lock = sandbox.endpoints.lock("inference")
        lock.mkdir()
        with pytest.raises(ShammahError) as failed:
            ensured()
        lock.rmdir()
        assert "inference.lock: it is not a regular file." in failed.value.message
        assert "Errno" not in str(failed.value)

    def test_a_worker_that_runs_and_does_not_answer_is_an_error(
        self, ensured: Ensure, start_echo: StartEcho, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start_echo().freeze()
        monkeypatch.setattr(lifecycle, "START_S", 0.3)
        with pytest.raises(ShammahError) as failed:
            ensured()
        assert failed.value.code == "worker_silent"
        assert "shammah stop inference" in failed.value.hint

    def test_a_log_that_cannot_be_written_is_done_without(
        self, ensured: Ensure, sandbox: Sandbox
    ) -> None:
        (sandbox.shammah_home / "logs").write_text("a file, not a directory")
        started = ensured()
        assert isinstance(list(started.generate((ChatMessage("user", "hi"),)))[-1], Done)

    def test_a_program_that_cannot_be_run_is_an_error_like_others(
        self, ensured: Ensure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lifecycle, "worker_command", lambda spec: ["/nonexistent/python"])
        with pytest.raises(ShammahError, match="/nonexistent/python") as failed:
            ensured()
        assert failed.value.code == "worker_start_failed"

    def test_a_worker_is_detached_from_the_terminal_and_its_log_is_private(
        self, ensured: Ensure, sandbox: Sandbox
    ) -> None:
        os.umask(os.umask(0o022))
        pid = _pid(ensured())
        assert os.getsid(pid) == pid
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
        log = sandbox.shammah_home / "logs" / "inference.log"
        assert os.readlink(f"/proc/{pid}/fd/2") == str(log)
        assert (log.stat().st_mode & 0o777, log.parent.stat().st_mode & 0o777) == (0o600, 0o700)

    def test_a_worker_outlives_the_signal_of_its_frontends_terminal(self, sandbox: Sandbox) -> None:
        frontend = subprocess.Popen(
            [*_ASK, "hello"], start_new_session=True, stdin=subprocess.DEVNULL
        )
        until(lambda: sandbox.holder(), "the worker is up")
        os.killpg(frontend.pid, signal.SIGINT)
        frontend.wait()
        assert sandbox.holder()


_ASK = [sys.executable, "-P", str(Path(__file__).parents[1] / "fakes" / "frontend.py"), "ask"]
_ASK += ["--model", "starter"]


def _pid(peer: Peer) -> int:
    assert peer.welcome is not None
    return peer.welcome.pid


@pytest.mark.usefixtures("echo_spawns")
@pytest.mark.parametrize(
    ("role", "given"),
    [
        ("inference", set()),
        ("cloud", {"ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_CUSTOM_HEADERS"}),
        ("download", {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}),
    ],
)
def test_a_worker_gets_the_secrets_of_its_role_alone(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, role: str, given: set[str]
) -> None:
    secrets = {
        "ANTHROPIC_API_KEY": "sk-1",
        "ANTHROPIC_AUTH_TOKEN": "sk-2",
        "ANTHROPIC_CUSTOM_HEADERS": "x: sk-3",
        "HF_TOKEN": "hf_4",
        "HUGGING_FACE_HUB_TOKEN": "hf_5",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    worker = spawn(spec_for(role=role))
    until(lambda: sandbox.holder(role) == worker.pid, "it is up")
    seen = psutil.Process(worker.pid)
    assert {name for name in secrets if name in seen.environ()} == given
    assert "sk-" not in " ".join(seen.cmdline())
    worker.kill()
    worker.wait()


@pytest.mark.usefixtures("echo_spawns")
def test_a_role_without_settings_does_not_depend_on_the_clouds_key(
    ensured: Ensure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The download worker never sees the key, so its identity must not cover it."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-1")
    assert ensured(spec_for(role="download")).welcome


class TestStop:
    def test_with_nothing_running(self, sandbox: Sandbox) -> None:
        assert stop("inference", sandbox.endpoints) is None

    def test_a_worker_that_listens_is_stopped_by_request(
        self, sandbox: Sandbox, start_echo: StartEcho
    ) -> None:
        echo = start_echo()
        assert stop("inference", sandbox.endpoints) is Rung.REQUEST
        assert echo.wait() == 0
        assert stop("inference", sandbox.endpoints) is None

    def test_a_worker_that_is_deaf_to_requests_is_stopped_by_sigterm(
        self, sandbox: Sandbox, start_echo: StartEcho, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lifecycle, "STOP_S", 5.0)
        echo = start_echo("--ignore-stop")
        assert stop("inference", sandbox.endpoints) is Rung.SIGTERM
        assert echo.wait() == 0

    def test_a_frozen_worker_is_stopped_by_sigkill(
        self, sandbox: Sandbox, start_echo: StartEcho, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lifecycle, "STOP_S", 2.0)
        echo = start_echo()
        echo.freeze()
        assert stop("inference", sandbox.endpoints) is Rung.SIGKILL
        assert echo.wait() == -signal.SIGKILL

    def test_a_busy_worker_is_stopped_though_its_step_does_not_end(
        self, sandbox: Sandbox, start_echo: StartEcho, connect: Connect
    ) -> None:
        echo = start_echo("--delay-ms", "60000")
        generation = connect().generate((ChatMessage("user", "a b"),))
        next(iter(generation))
        assert stop("inference", sandbox.endpoints) is Rung.REQUEST
        assert echo.wait() == 0

    def test_a_process_whose_pid_stands_in_a_stale_lock_is_not_touched(
        self, sandbox: Sandbox
    ) -> None:
        bystander = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
        )
        try:
            sandbox.endpoints.lock("inference").write_text(f"{bystander.pid}\n")
            assert stop("inference", sandbox.endpoints) is None
            assert bystander.poll() is None
        finally:
            bystander.kill()
            bystander.communicate()

    def test_a_stop_does_not_end_the_worker_of_another_role(
        self, sandbox: Sandbox, start_echo: StartEcho
    ) -> None:
        inference, cloud = start_echo(), start_echo(role="cloud")
        stop("inference", sandbox.endpoints)
        assert inference.wait() == 0
        assert cloud.alive()


def test_a_directory_called_workers_does_not_run_in_the_place_of_ours(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    stray = sandbox.home / "workers"
    stray.mkdir()
    (stray / "__init__.py").write_text("")
    (stray / "__main__.py").write_text("print('hijacked')")
    monkeypatch.chdir(sandbox.home)
    spec = replace(spec_for(role="cloud"), arguments=("--no-such-option",))
    ended = subprocess.run(worker_command(spec), capture_output=True, text=True, check=False)
    assert "hijacked" not in ended.stdout
    assert ended.returncode == 2
    assert "no-such-option" in ended.stderr
    shutil.rmtree(stray)


def test_the_log_of_a_running_worker_is_put_aside_when_it_is_long(sandbox: Sandbox) -> None:
    spec = spec_for(role="cloud")
    spec.log_file.parent.mkdir(mode=0o700)
    spec.log_file.write_bytes(b"x" * MAX_BYTES)
    worker = spawn(spec)  # a real one; without a key it has nothing to do
    try:
        aside = spec.log_file.with_name("cloud.log.1")
        until(aside.exists, "it is put aside")
        assert aside.stat().st_size >= MAX_BYTES
        until(lambda: sandbox.holder("cloud") == worker.pid, "it runs on")
        stop("cloud", sandbox.endpoints)
        assert worker.wait() == 0
        assert "stopped: on request" in sandbox.log("cloud")
    finally:
        worker.kill()
        worker.wait()


def test_a_conversation_that_is_too_long_to_send_ends_with_a_failure(
    start_echo: StartEcho, connect: Connect
) -> None:
    start_echo()
    peer = connect()
    (failure,) = list(peer.generate((ChatMessage("user", "x" * 9_000_000),)))
    assert not isinstance(failure, Generate)
    assert getattr(failure, "code", "") == "message_too_long"
    assert isinstance(list(peer.generate((ChatMessage("user", "short"),)))[-1], Done)
