"""From an empty cache to an answer, through the program alone, with only HF_ENDPOINT set."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shammah.bus.messages import Downloading, Failed, Loading, NotAvailable, Ready, State
from shammah.models.catalogue import select_model, total_memory
from tests.fakes.command import SHAMMAH, Ran, run
from tests.fakes.hub import StandInHub
from tests.fakes.sandbox import Sandbox, online, until
from tests.real.local_hub import (
    ASK_PARIS,
    LOAD_S,
    MIB,
    PARIS,
    QWEN,
    WEIGHTS,
    Connections,
    NoNetwork,
    Watch,
    hubs,
    kill_workers,
    starter_files,
)

pytestmark = pytest.mark.timeout(900)

Serve = Callable[..., StandInHub]


@pytest.fixture
def serve(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serves the starter under another name, as the only Hub that the program knows."""
    with hubs(sandbox, monkeypatch) as start:
        yield lambda model_id=QWEN, **options: start(starter_files(), model_id=model_id, **options)


@pytest.fixture
def watch(sandbox: Sandbox) -> Iterator[Watch]:
    """The inference worker's states."""
    watching = Watch(sandbox)
    yield watching
    watching.close()


def size_of(hub: StandInHub) -> int:
    return sum(len(file.content) for file in hub.commits[hub.main].values())


def ask(*arguments: str, command: tuple[str, ...] = SHAMMAH) -> Ran:
    ended = run("ask", *arguments, command=command, limit=2 * LOAD_S)
    assert "Traceback" not in ended.err
    return ended


def test_from_nothing_to_paris_and_then_without_any_connection(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: Watch
) -> None:
    connections = Connections(tmp_path)
    for name, value in connections.variables.items():
        monkeypatch.setenv(name, value)
    hub = serve()
    hub.fault("revision", "status", status=503)
    hub.fault(WEIGHTS, "truncate", at=3 * MIB)
    first = ask("--model", "1.5B", ASK_PARIS)
    assert (first.code, first.out) == (0, PARIS), first.err
    assert f"local: {QWEN} ·" in first.err
    assert size_of(hub) <= hub.sent_bytes <= size_of(hub) + MIB
    told = [type(state) for state in watch.told()]
    assert told.index(Downloading) < told.index(Loading) < told.index(Ready)
    # Only the download worker has a connection, and the hook sees each that it makes.
    assert connections.begun("inference") == 1
    assert connections.attempts()
    assert all("-m workers download" in line for line in connections.attempts())

    assert run("stop").code == 0
    hub.asked.clear()
    connections.forget()
    cut_off = NoNetwork(tmp_path)
    second = ask("--model", "1.5B", ASK_PARIS, command=cut_off.command)
    assert (second.code, second.out) == (0, PARIS), second.err
    assert not cut_off.attempts()
    assert connections.begun("inference") == 1
    assert connections.begun("download") == 0
    assert connections.attempts() == []
    assert hub.asked == []


# --- chosen by memory ---------------------------------------------------------------------


def provenance_of_answer(*arguments: str, command: tuple[str, ...] = SHAMMAH) -> dict[str, Any]:
    ended = ask(*arguments, "--json", ASK_PARIS, command=command)
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert document["text"] + "\n" == PARIS
    found: dict[str, Any] = document["provenance"]
    return found


def wait_successor(watch: Watch, model_id: str) -> None:
    """Until the model itself answers, and not what stands in for it."""

    def look() -> bool:
        match watch.states[-1:]:
            case [Ready(fallback=False, model=model)]:
                return bool(model == model_id)
            case [Ready(note=note)]:
                assert not note
        return False

    until(look, f"{model_id} is ready", LOAD_S)


def under_way(state: State, model_id: str) -> bool:
    """Whether the starter stands in for a model of which some has arrived."""
    assert isinstance(state, Ready)
    if state.successor is None:  # the download worker has not said anything yet
        return False
    assert state.successor.model == model_id
    return 0 < state.successor.done < state.successor.total


def test_the_starter_answers_until_the_model_chosen_by_memory_is_here(
    serve: Serve, watch: Watch
) -> None:
    selected = select_model(total_memory(psutil.virtual_memory().total))
    if selected is None:
        pytest.skip("this machine has too little memory for any model")
    hub = serve(selected.model_id)
    released = threading.Event()
    hub.fault(WEIGHTS, "hook", at=1000, times=None, call=lambda: released.wait(LOAD_S))
    try:
        first = provenance_of_answer()
        assert (first["model"], first["fallback"]) == ("starter", True)
        wanted = selected.model_id
        until(lambda: under_way(watch.now().status.state, wanted), "bytes arrive", LOAD_S)
    finally:
        released.set()
    wait_successor(watch, selected.model_id)
    second = provenance_of_answer()
    assert (second["model"], second["fallback"]) == (selected.model_id, False)
    assert second["revision"] == hub.main
    assert hub.sent_bytes == size_of(hub)


@pytest.fixture
def eight_gib(sandbox: Sandbox) -> Iterator[tuple[str, ...]]:
    """``shammah`` in a memory cgroup of 8 GiB."""
    wanted = 8 * 1024**3
    if psutil.virtual_memory().total < wanted:
        pytest.skip("this machine has less than 8 GiB itself")
    for root, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):  # v1, v2
        group = Path("/sys/fs/cgroup", root, f"shammah-test-{os.getpid()}")
        try:
            group.mkdir()
            (group / limit).write_text(str(wanted))
            break
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
    else:
        pytest.skip("no memory cgroup can be made here")
    yield ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *SHAMMAH)
    kill_workers(sandbox)
    until(lambda: not (group / "cgroup.procs").read_text(), "the cgroup is empty")
    group.rmdir()


def test_a_container_of_8_gib_gets_the_smaller_model(
    serve: Serve, watch: Watch, eight_gib: tuple[str, ...]
) -> None:
    serve(QWEN)
    provenance_of_answer(command=eight_gib)  # by either, whichever is there first
    wait_successor(watch, QWEN)
    assert provenance_of_answer(command=eight_gib)["model"] == QWEN


# --- no way to the Hub --------------------------------------------------------------------


@pytest.fixture
def no_hub(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """HF_ENDPOINT names a port where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        online(monkeypatch, f"http://127.0.0.1:{taken.getsockname()[1]}")
        yield
        kill_workers(sandbox)


@pytest.mark.usefixtures("no_hub")
def test_without_a_hub_the_starter_answers_and_says_why(watch: Watch) -> None:
    ended = ask(ASK_PARIS)
    assert (ended.code, ended.out) == (0, PARIS), ended.err

    def noted() -> Ready | None:
        state = watch.now().status.state
        return state if isinstance(state, Ready) and state.note else None

    ready = until(noted, "the failure is told", LOAD_S)
    assert ready.fallback
    assert ready.successor is None
    assert "Couldn't download" in ready.note
    assert "the connection was refused" in ready.note


@pytest.mark.usefixtures("no_hub")
def test_without_a_hub_and_a_stand_in_nothing_answers(watch: Watch) -> None:
    ended = ask("--model", "1.5B", ASK_PARIS)
    assert (ended.code, ended.out) == (1, "")
    *_, last = ended.err.splitlines()
    assert f"{QWEN} is not on this machine." in last
    assert "the connection was refused" in last
    assert ended.err.count("refused") == 1
    assert isinstance(watch.now().status.state, NotAvailable)


def test_offline_nothing_is_tried(sandbox: Sandbox) -> None:
    """The sandbox sets HF_HUB_OFFLINE."""
    try:
        ended = ask("--model", "1.5B", ASK_PARIS)
        assert (ended.code, ended.out) == (1, "")
        assert "HF_HUB_OFFLINE is set" in ended.err
        assert set(sandbox.holders()) == {"inference"}
    finally:
        kill_workers(sandbox)


# --- damage -------------------------------------------------------------------------------


@pytest.fixture
def damaged(serve: Serve) -> StandInHub:
    """The Hub of a model in the cache, the header of whose weights is overwritten."""
    hub = serve()
    pulled = run("models", "pull", QWEN, limit=LOAD_S)
    assert pulled.code == 0, pulled.err
    blob = (Path(pulled.out.strip()) / WEIGHTS).resolve()
    with blob.open("r+b") as file:
        file.write(b"\xff" * 8)
    hub.asked.clear()
    hub.sent.clear()
    return hub


def test_a_damaged_file_is_fetched_anew_and_the_question_answered(
    damaged: StandInHub, watch: Watch
) -> None:
    ended = ask("--model", "1.5B", ASK_PARIS)
    assert (ended.code, ended.out) == (0, PARIS), ended.err
    assert {request.path for request in damaged.asked} == {WEIGHTS}
    assert damaged.sent_bytes == len(damaged.commits[damaged.main][WEIGHTS].content)
    state = watch.now().status.state
    assert isinstance(state, Ready)
    assert f"{WEIGHTS} is damaged" in state.note
    assert "downloaded again" in state.note


def test_a_damaged_file_that_cannot_be_fetched_is_told(damaged: StandInHub, watch: Watch) -> None:
    damaged.fault(WEIGHTS, "status", status=403, times=None)
    ended = ask("--model", "1.5B", ASK_PARIS)
    assert (ended.code, ended.out) == (1, "")
    *_, last = ended.err.splitlines()
    assert f"{WEIGHTS} is damaged" in last
    assert "Couldn't download it again" in last
    assert "HTTP 403" in last
    state = watch.now().status.state
    assert isinstance(state, Failed)
    assert state.code == "model_corrupt"
