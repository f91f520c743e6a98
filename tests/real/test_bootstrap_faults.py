"""Kills, cancels and tokens while a model is on its way: real processes, real transfers."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shammah.bus.messages import ChatMessage, Downloading, Failed, Ready
from shammah.chat.session import Session
from shammah.router.decision import Override
from shammah.settings.load import load_settings
from shammah.supervision import link
from tests.fakes.command import Ran, run
from tests.fakes.hub import StandInHub
from tests.fakes.sandbox import LIMIT_S, Sandbox, until
from tests.fakes.terminal import Terminal
from tests.fakes.turns import way_of
from tests.real.local_hub import (
    LOAD_S,
    MIB,
    QWEN,
    WEIGHTS,
    Watch,
    begun,
    hubs,
    logs,
    tiny_files,
)

pytestmark = pytest.mark.timeout(900)

KILLS, SEED = 30, 20261124
SLOW = {"rate": 4 * MIB, "send_buffer": 16 * 1024}
"""A link that is slower than the reader, with little in the server's own buffers."""

Serve = Callable[..., StandInHub]


@pytest.fixture
def serve(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serves a tiny model, ``padding`` bytes bigger, as the only Hub that the program knows."""
    with hubs(sandbox, monkeypatch) as start:

        def serve_tiny(padding: int = 0, **options: Any) -> StandInHub:
            return start(tiny_files(tmp_path / "model", padding), model_id=QWEN, **options)

        yield serve_tiny


@pytest.fixture
def watch(sandbox: Sandbox) -> Iterator[Watch]:
    """The inference worker's states."""
    watching = Watch(sandbox)
    yield watching
    watching.close()


class Hold:
    """Keeps the weights from arriving, but for a few bytes, until `release`."""

    def __init__(self, hub: StandInHub) -> None:
        self._released = threading.Event()
        hub.fault(WEIGHTS, "hook", at=1000, times=None, call=self._wait)

    def _wait(self) -> None:
        self._released.wait(LOAD_S)

    def release(self) -> None:
        self._released.set()


@pytest.fixture
def hold() -> Iterator[Callable[[StandInHub], Hold]]:
    made: list[Hold] = []

    def make(hub: StandInHub) -> Hold:
        made.append(Hold(hub))
        return made[-1]

    yield make
    for held in made:
        held.release()


def size_of(hub: StandInHub) -> int:
    return sum(len(file.content) for file in hub.commits[hub.main].values())


def assert_whole() -> None:
    verified = run("models", "verify", QWEN, "--hashes", limit=LOAD_S)
    assert (verified.code, verified.out) == (0, f"{QWEN}: complete\n"), verified.err


class Killer:
    """Kills the download worker when the hub has sent so many bytes: ``at``, in order."""

    def __init__(self, sandbox: Sandbox, hub: StandInHub, at: Iterator[int]) -> None:
        self.killed: list[int] = []
        self._sandbox = sandbox
        self._at = at
        self._next = next(at)
        self._lock = threading.Lock()
        hub.on_sent = self._sent

    def _sent(self, sent: int) -> None:
        with self._lock:
            if sent < self._next:
                return
            worker = self._sandbox.holder("download")
            if not worker or worker in self.killed:  # the one that was killed still reads
                return
            self.killed.append(worker)
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
            self._next = next(self._at, sys.maxsize)


# --- SIGKILL ------------------------------------------------------------------------------


def assert_asked(ended: Ran) -> None:
    """The model was there and asked. It is a tiny one of random weights, which may say nothing."""
    assert ended.code == 0 or "returned no text" in ended.err, ended.err


def test_a_download_outlives_the_prompt_and_the_model_that_wait_for_it(
    serve: Serve, hold: Callable[[StandInHub], Hold], sandbox: Sandbox
) -> None:
    """Nobody is left but the download worker, and it leaves when it has done."""
    (sandbox.shammah_home / "config.toml").write_text("[inference]\nkeep_alive = 0\n")
    hub = serve(MIB)
    held = hold(hub)
    terminal = Terminal("--model", "1.5B")
    try:
        until(lambda: hub.count(WEIGHTS), "the weights are asked for", LOAD_S)
        worker = sandbox.holder("download")
        os.kill(terminal.pid, signal.SIGKILL)
    finally:
        terminal.destroy()
    until(lambda: sandbox.holder("inference") is None, "nobody waits any more")
    assert sandbox.holder("download") == worker
    held.release()
    until(lambda: sandbox.holder("download") is None, "the download is done")
    assert hub.sent_bytes == size_of(hub)
    assert_whole()
    assert hub.sent_bytes == size_of(hub)


def test_a_download_worker_that_dies_is_started_anew_by_whom_waits(
    serve: Serve, sandbox: Sandbox, watch: Watch
) -> None:
    # Slow enough that every worker has time to tell how far it is.
    hub = serve(48 * MIB, rate=2 * MIB, send_buffer=SLOW["send_buffer"])
    total = size_of(hub)
    killer = Killer(sandbox, hub, iter([total // 4, total // 2, total * 3 // 4]))
    ended = run("ask", "--model", "1.5B", "Anything?", limit=2 * LOAD_S)
    assert_asked(ended)
    assert len(killer.killed) == 3
    assert total <= hub.sent_bytes <= total + 3 * MIB
    told = [state for state in watch.told() if isinstance(state, Downloading)]
    done = [state.done for state in told]
    assert done == sorted(done)
    assert any(0 < amount < total for amount in done)
    assert {state.total for state in told} <= {0, total}
    assert isinstance(watch.now().status.state, Ready)
    assert_whole()


def test_thirty_kills_of_the_worker_cost_little(serve: Serve, sandbox: Sandbox) -> None:
    hub = serve(96 * MIB, **SLOW)
    total = size_of(hub)
    rng = random.Random(SEED)

    def offsets() -> Iterator[int]:
        """Almost to the end, and much further apart than what a kill may cost."""
        for _ in range(KILLS):
            yield hub.sent_bytes + rng.randrange(17 * total // (10 * KILLS))

    killer = Killer(sandbox, hub, offsets())
    # Each pull starts the worker anew a few times, and then gives up.
    for _ in range(KILLS):
        pulled = run("models", "pull", QWEN, limit=LOAD_S)
        if pulled.code == 0:
            break
        assert "died" in pulled.err
    assert pulled.code == 0
    assert len(killer.killed) == KILLS
    print(f"{(hub.sent_bytes - total) / KILLS / 1024:.0f} KiB were sent again for each kill")
    assert hub.sent_bytes <= total + KILLS * MIB
    assert_whole()


# --- cancel -------------------------------------------------------------------------------


def test_a_cancelled_download_is_not_begun_again_by_whom_it_was_cancelled_for(
    serve: Serve,
    hold: Callable[[StandInHub], Hold],
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "RETRY_S", 0.0)  # any other failure is tried again at once
    hub = serve(MIB)
    hold(hub)
    settings = load_settings(os.environ, "1.5B")
    session = Session(settings, os.environ, "repl", local_only=True)
    try:
        session.start()
        until(lambda: hub.count(WEIGHTS), "the weights are asked for", LOAD_S)
        assert run("models", "pull", "--cancel", QWEN).code == 0
        assert watch.wait(Failed).code == "download_cancelled"
        asked = len(hub.asked)
        patience = threading.Timer(LIMIT_S, session.interrupt)
        patience.start()
        for _ in range(2):
            *_, last = way_of(session, (ChatMessage("user", "Anything?"),), Override())
            assert isinstance(last, Failed)
            assert last.code == "download_cancelled"
            assert QWEN in last.message
        patience.cancel()
        assert len(hub.asked) == asked
    finally:
        session.close()
    # Whoever asks anew means it.
    with begun("ask", "--model", "1.5B", "Anything?"):
        until(lambda: len(hub.asked) > asked, "it is begun again", LOAD_S)


# --- tokens -------------------------------------------------------------------------------

TOKEN = "hf_SecretOfThisTest"


def mentions(directory: Path, secret: str) -> list[Path]:
    """The files that hold ``secret``."""
    files = [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if secret.encode() in path.read_bytes()]


def test_a_gated_model_needs_a_token_that_only_the_download_worker_gets(
    serve: Serve, sandbox: Sandbox, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = serve(token=TOKEN)
    refused = run("ask", "--model", "1.5B", "Anything?", limit=LOAD_S)
    assert (refused.code, refused.out) == (1, "")
    *_, last = refused.err.splitlines()
    assert re.search(rf"{QWEN} is gated.*HF_TOKEN", last)
    state = watch.now().status.state
    assert isinstance(state, Failed)
    assert state.code == "model_gated"
    assert hub.sent_bytes == 0

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    ended = run("ask", "--model", "1.5B", "Anything?", limit=LOAD_S)
    assert_asked(ended)
    assert hub.sent_bytes == size_of(hub)
    workers = {role: psutil.Process(pid).environ() for role, pid in sandbox.holders().items()}
    assert {role for role, variables in workers.items() if TOKEN in variables.values()} == {
        "download"
    }
    assert "inference" in workers
    assert logs(sandbox)
    assert mentions(sandbox.root, TOKEN) == []
    assert TOKEN not in ended.said
    assert TOKEN not in run("status", "--once", "--json").said
