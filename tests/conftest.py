"""Every test lives in a world of its own, and leaves nothing behind."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

import hypothesis
import psutil
import pytest

from shammah.history import recorder
from shammah.router import service
from tests.fakes.sandbox import FORGOTTEN, KEPT, LIMIT_S, UNSET, Sandbox

# The same examples on every run, on every machine, and no file in the checkout.
hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=False,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # a busy machine is no fault
)
hypothesis.settings.load_profile("repeatable")

# A shell's background job ignores Ctrl-C, and so would every program that is started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Read once, when torch is imported here: see workers/environment.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run first what takes longest, so that at the end no file is left to one process alone."""
    kinds = ["train", "real", "process"]
    items.sort(
        key=lambda item: next((n for n, kind in enumerate(kinds) if kind in str(item.path)), 9)
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep what has been imported out of each later collection of garbage, which took seconds."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Home, runtime directory and environment of this test alone.

    Afterwards no process of it, no thread and no socket of ours may be left.
    """
    for name in list(os.environ):
        if name in UNSET or (name.startswith(FORGOTTEN) and not name.startswith(KEPT)):
            monkeypatch.delenv(name)
    world = Sandbox.make()
    for name, value in world.variables().items():
        monkeypatch.setenv(name, value)
    before = _unix_sockets()
    yield world
    leaks = world.leaks()
    leaks += [f"socket {fd}" for fd in _unix_sockets() - before]
    leaks += world.remove()
    assert not leaks, f"left behind: {'; '.join(leaks)}"


@pytest.fixture(autouse=True)
def patient_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left to be written is written, however busy the disk is."""
    monkeypatch.setattr(service, "CLOSE_S", LIMIT_S)
    monkeypatch.setattr(recorder, "KEEP_S", LIMIT_S)
    monkeypatch.setattr(recorder, "CLOSE_S", LIMIT_S)


def _unix_sockets() -> set[int]:
    """The Unix sockets that this process has open (libzmq's and our socket pairs)."""
    return {connection.fd for connection in psutil.Process().net_connections("unix")}
