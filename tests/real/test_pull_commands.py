"""``shammah models pull`` in a pipe: several at once, pauses, deaths, and what it says of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.hub import StandInHub
from tests.fakes.sandbox import Sandbox, until
from tests.fakes.wire import Listener
from tests.real.test_download_commands import FILES, LIMIT_S, MODEL, SHAMMAH, run
from tests.real.test_download_commands import hub as hub

OTHER = "acme/other"
WEIGHTS = "model.safetensors"
SIZE = sum(map(len, FILES.values()))
RATE, TRICKLE = 600_000.0, 30_000.0


class Pulling:
    """``shammah models pull`` while it runs."""

    def __init__(self, *arguments: str) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [SHAMMAH, "models", "pull", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def expect(self, pattern: str) -> str:
        """Wait for a line with ``pattern``."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line)
            if re.search(pattern, line):
                return line
        raise AssertionError(f"it ended without {pattern!r}: {self.lines}")

    def interrupt(self) -> None:
        self.send(signal.SIGINT)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Exit status and all that was said."""
        out, err = self._process.communicate(timeout=LIMIT_S)
        return self._process.returncode, "".join([*self.lines, err, out])

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def pulls() -> Iterator[list[Pulling]]:
    """What is in here is ended after the test."""
    started: list[Pulling] = []
    yield started
    for pulling in started:
        pulling.kill()


def slow_pull(hub: StandInHub, pulls: list[Pulling], *arguments: str) -> Pulling:
    """A pull of 6 MB that is under way, and takes minutes for the rest."""
    hub.rate = RATE
    pulls.append(Pulling(*(arguments or (MODEL,))))
    pulls[-1].expect(r"^Downloading .*: [1-9]\d?%")
    hub.rate = TRICKLE
    return pulls[-1]


def manifest(sandbox: Sandbox) -> list[Path]:
    return list(sandbox.home.glob(".cache/huggingface/hub/models--*/shammah/*.json"))


def test_it_brings_the_model_and_says_where_in_whole_sentences(hub: StandInHub) -> None:
    pulled = run("models", "pull", "0.5B")
    directory = Path(pulled.stdout.strip())
    assert (directory / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    lines = pulled.stderr.splitlines()
    assert lines[0] == f"Downloading {MODEL}: 6.3 MB in 2 files."
    assert re.fullmatch(f"Downloaded {MODEL}: 6.3 MB in \\d+ s, every byte verified.", lines[-1])
    assert all(line.endswith(".") for line in lines)
    assert "\x1b" not in pulled.stdout + pulled.stderr


def test_a_second_one_asks_nobody(hub: StandInHub) -> None:
    run("models", "pull", "0.5B")
    asked = len(hub.asked)
    assert run("models", "pull", "0.5B").stderr == f"{MODEL} is already downloaded.\n"
    assert len(hub.asked) == asked


def test_json_is_one_object_and_nothing_else_in_a_pipe(hub: StandInHub) -> None:
    pulled = run("models", "pull", MODEL, "--json")
    found = json.loads(pulled.stdout)
    assert (found["model"], pulled.stderr) == (MODEL, "")
    assert Path(found["directory"], WEIGHTS).exists()


def test_json_of_a_failure_has_the_error(hub: StandInHub) -> None:
    failed = run("models", "pull", "acme/nothing", "--json", code=1)
    assert json.loads(failed.stdout)["error"]["code"] == "model_not_found"
    assert failed.stderr.startswith("shammah: There is no model acme/nothing")


def test_several_come_at_once(hub: StandInHub, pulls: list[Pulling]) -> None:
    hub.names.add(OTHER)
    pulling = slow_pull(hub, pulls, MODEL, OTHER)
    hub.rate = RATE
    pulling.expect(f"^Downloading {OTHER}: [1-9]")
    first = "".join(pulling.lines)
    assert re.search(rf"Downloading {MODEL}: \d+%", first), "one after the other"
    hub.rate = None
    code, said = pulling.end()
    assert code == 0
    directories = said.splitlines()[-2:]  # in the order in which they were named
    assert "models--Qwen" in directories[0]
    assert "models--acme--other" in directories[1]


def test_one_of_several_that_fails_leaves_the_others_alone(hub: StandInHub) -> None:
    pulled = run("models", "pull", "acme/nothing", MODEL, code=1)
    assert "acme/nothing: There is no model acme/nothing" in pulled.stderr
    assert Path(pulled.stdout.strip(), WEIGHTS).exists()


def test_after_ctrl_c_it_goes_on_though_nobody_needs_the_worker(
    hub: StandInHub, sandbox: Sandbox, pulls: list[Pulling]
) -> None:
    (sandbox.shammah_home / "config.toml").write_text("[inference]\nkeep_alive = 0\n")
    pulling = slow_pull(hub, pulls)
    pulling.interrupt()
    code, said = pulling.end()
    assert code == 130
    assert re.search(f"download of {MODEL} continues in the background \\(\\d+%\\)", said)
    assert f"shammah models pull --cancel {MODEL}" in said
    assert not manifest(sandbox)
    hub.rate = None
    until(lambda: manifest(sandbox), "the download is done", LIMIT_S)
    until(lambda: sandbox.holder("download") is None, "the worker is gone")


def test_it_survives_the_death_of_the_worker_and_says_so(
    hub: StandInHub, sandbox: Sandbox, pulls: list[Pulling]
) -> None:
    pulling = slow_pull(hub, pulls)
    worker = sandbox.holder("download")
    assert worker
    os.kill(worker, signal.SIGKILL)
    pulling.expect(f"^The download worker died and was restarted; {MODEL} resumes")
    hub.rate = None
    code, said = pulling.end()
    assert code == 0, said
    assert said.count("died") == 1
    assert sum(hub.sent.values()) <= SIZE + 1024 * 1024
    assert run("models", "verify", MODEL, "--hashes").stdout == f"{MODEL}: complete\n"


def test_a_stop_of_the_worker_is_not_called_a_cancellation(
    hub: StandInHub, pulls: list[Pulling]
) -> None:
    pulling = slow_pull(hub, pulls)
    run("stop", "download")
    code, said = pulling.end()
    assert code == 1
    assert "The download worker was stopped" in said
    assert "cancelled" not in said
    hub.rate = None
    assert run("models", "pull", MODEL).stdout


def test_one_that_was_stopped_for_a_while_is_told_how_the_download_ends(
    hub: StandInHub, sandbox: Sandbox, pulls: list[Pulling]
) -> None:
    """Ctrl-Z and fg: the worker has given it up meanwhile, and fetched all the same."""
    pulling = slow_pull(hub, pulls)
    listener = Listener(sandbox.endpoints, "download")
    pulling.send(signal.SIGSTOP)
    listener.until("lapsed")
    listener.close()
    pulling.send(signal.SIGCONT)
    hub.rate = None
    code, said = pulling.end()
    assert code == 0, said
    assert "every byte verified" in said
    assert "died" not in said


def test_pause_resume_and_cancel(hub: StandInHub, pulls: list[Pulling]) -> None:
    pulling = slow_pull(hub, pulls)
    assert "paused; partial downloads are kept" in run("models", "pull", "--pause", MODEL).stdout
    pulling.expect(f"^The download of {MODEL} is paused: \\d+%")
    assert f"{MODEL} paused" in run("status", "--once").stdout
    assert "resumed" in run("models", "pull", "--resume", MODEL).stdout
    pulling.expect(f"^Downloading {MODEL}: ")
    assert f"{MODEL} running" in run("status", "--once").stdout
    assert "cancelled" in run("models", "pull", "--cancel", MODEL).stdout
    code, said = pulling.end()
    assert code == 1
    assert f"The download of {MODEL} was cancelled." in said
    listed = run("models", "list").stdout
    assert re.search(f"{MODEL} .* incomplete, \\d+\\.\\d MB", listed)
    assert "is not being downloaded" in run("models", "pull", "--pause", MODEL, code=1).stderr


def test_another_pull_of_a_paused_download_resumes_it_and_says_so(
    hub: StandInHub, pulls: list[Pulling]
) -> None:
    first = slow_pull(hub, pulls)
    run("models", "pull", "--pause", MODEL)
    first.expect("is paused")
    hub.rate = None
    second = run("models", "pull", MODEL)
    assert f"Resumed the download of {MODEL}, which was paused." in second.stderr
    assert first.end()[0] == 0


def test_leaving_a_paused_download_does_not_say_that_it_goes_on(
    hub: StandInHub, pulls: list[Pulling]
) -> None:
    pulling = slow_pull(hub, pulls)
    run("models", "pull", "--pause", MODEL)
    pulling.expect("is paused")
    pulling.interrupt()
    code, said = pulling.end()
    assert code == 130
    assert f"The download of {MODEL} stays paused" in said
    assert "continues in the background" not in said
    run("models", "pull", "--cancel", MODEL)


def test_a_file_that_arrives_damaged_is_said_once(hub: StandInHub) -> None:
    hub.fault(WEIGHTS, "corrupt", at=5)
    pulled = run("models", "pull", MODEL)
    assert pulled.stderr.count(f"{MODEL}: {WEIGHTS} arrived damaged") == 1
    assert hub.sent[WEIGHTS] == 2 * len(FILES[WEIGHTS])


def test_status_tells_the_same(hub: StandInHub, pulls: list[Pulling]) -> None:
    hub.fault("config.json", "corrupt", at=5)
    slow_pull(hub, pulls)
    said = run("status", "--once", "--role", "download").stdout.splitlines()
    assert f"{MODEL} running: " in said[0]
    assert said[1].startswith(f"download   {MODEL}: config.json arrived damaged")
    run("models", "pull", "--cancel", MODEL)


def test_what_it_waits_for_is_said(hub: StandInHub, pulls: list[Pulling]) -> None:
    hub.fault(WEIGHTS, "status", status=503, headers={"Retry-After": "100"})
    pulls.append(Pulling(MODEL))
    said = pulls[0].expect("is waiting")
    why = f"{hub.endpoint} returned HTTP 503 for {WEIGHTS}"
    assert f"is waiting: attempt 2 of 8 in 100 s, since {why}." in said
    told = f"{MODEL} running (attempt 2 of 8"
    until(lambda: told in run("status", "--once").stdout, "status tells it too", LIMIT_S)
    run("models", "pull", "--cancel", MODEL)
    assert pulls[0].end()[0] == 1


def test_the_next_pull_may_have_other_settings(
    hub: StandInHub, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before has given its lease back when it ends."""
    for name in ("one", "two"):
        monkeypatch.setenv("HF_HOME", str(sandbox.root / name))
        assert str(sandbox.root / name) in run("models", "pull", MODEL).stdout
        assert "[0 attached, 0 active" in run("status", "--once").stdout


def test_a_worker_at_work_is_not_replaced_by_one_for_another_hub(
    hub: StandInHub, sandbox: Sandbox, pulls: list[Pulling], monkeypatch: pytest.MonkeyPatch
) -> None:
    pulling = slow_pull(hub, pulls)
    pulling.interrupt()
    pulling.end()
    worker = sandbox.holder("download")
    with StandInHub(FILES, model_id=OTHER) as another:
        monkeypatch.setenv("HF_ENDPOINT", another.endpoint)
        refused = run("models", "pull", OTHER, code=1).stderr
        assert f"The download worker is fetching {MODEL} from {hub.endpoint};" in refused
        assert f"you asked for {another.endpoint}." in refused
        assert "`shammah stop download`" in refused
        assert sandbox.holder("download") == worker
        assert not another.asked
        hub.rate = None
        until(lambda: manifest(sandbox), "the download is done", LIMIT_S)
        pulled = until(
            lambda: run_or_none("models", "pull", OTHER), "the worker can be replaced", LIMIT_S
        )
        assert Path(pulled.strip(), WEIGHTS).exists()


def run_or_none(*arguments: str) -> str | None:
    """What it printed, if it could."""
    ended = subprocess.run(
        [SHAMMAH, *arguments], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    return ended.stdout if ended.returncode == 0 else None
