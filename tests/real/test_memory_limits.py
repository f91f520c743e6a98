"""A machine with too little memory: real limits, real kills, and a question that is answered."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from shammah.bus.client import Peer
from shammah.bus.messages import Event, Failed, Ready, State
from shammah.chat.session import Session
from shammah.models.catalogue import GIB
from shammah.models.footprint import SHORT_CONTEXT
from shammah.settings.load import load_settings
from shammah.supervision import lifecycle
from shammah.supervision.oom_record import attempt_file, read_attempt
from tests.fakes import hungry
from tests.fakes.command import SHAMMAH
from tests.fakes.memory_group import MemoryGroup, can_make_groups
from tests.fakes.sandbox import Sandbox, until
from tests.real.local_hub import ASK_PARIS, MIB, PARIS, kill
from tests.real.models import KEPT_KERNELS

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not can_make_groups(), reason="no memory cgroup can be made here"),
]

LIMIT_S = 60.0
WITH_HUNGRY = (sys.executable, "-P", hungry.HUNGRY)


class Told:
    """Every state of every inference worker of this world, in order."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.states: list[State] = []
        self.deaths = 0
        self._peer = Peer(sandbox.endpoints, "inference", None, self._heard)

    def _heard(self, event: Event | None) -> None:
        if event is None:
            self.deaths += 1
        else:
            self.states.append(event.status.state)

    def wait_deaths(self, count: int) -> None:
        until(lambda: self.deaths >= count, f"{count} deaths are noticed", LIMIT_S)
        assert self.deaths == count

    def ready(self) -> Ready | None:
        return next((state for state in self.states if isinstance(state, Ready)), None)

    def close(self) -> None:
        self._peer.close()


@pytest.fixture
def told(sandbox: Sandbox) -> Iterator[Told]:
    every = Told(sandbox)
    yield every
    every.close()


@pytest.fixture(autouse=True)
def workers_end(sandbox: Sandbox) -> Iterator[None]:
    (sandbox.shammah_home / "kernels").symlink_to(KEPT_KERNELS)
    yield
    kill(sandbox)
    for child in lifecycle.children:
        child.wait(LIMIT_S)


def stages(sandbox: Sandbox) -> list[str]:
    """Of all loads, by what the workers have written down."""
    return re.findall(r"Loading\(.*?stage='([^']*)'", sandbox.log())


def ask(group: MemoryGroup, command: tuple[str, ...] = SHAMMAH) -> subprocess.CompletedProcess[str]:
    return group.run((*command, "ask", "--model", "starter", ASK_PARIS))


def test_what_cannot_be_held_is_refused_before_a_byte_is_read(sandbox: Sandbox) -> None:
    with MemoryGroup.make(500 * MIB) as group:
        ended = ask(group)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert re.search(
            r"needs 0\.[56] GiB in [48]-bit weights on cpu, but only 0\.[34] GiB", ended.stderr
        )
        assert "--model" in ended.stderr
        assert set(stages(sandbox)) == {"check files", "read tokenizer"}
        assert stages(sandbox).count("check files") > 1  # each rung has been looked at


def test_a_worker_that_is_killed_in_a_load_steps_down_and_the_question_is_answered(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUNGRY_BYTES", str(2 * GIB))
    monkeypatch.setenv("HUNGRY_UNTIL", "1")
    with MemoryGroup.make(GIB) as group:
        ended = ask(group, WITH_HUNGRY)
        assert (ended.returncode, ended.stdout) == (0, PARIS), ended.stderr
        told.wait_deaths(1)
        ready = until(told.ready, "it is told", LIMIT_S)
    assert (ready.model, ready.context_length) == ("starter", SHORT_CONTEXT)
    assert ready.note.startswith(
        "The system killed starter because memory ran out. starter runs with 8-bit weights"
    )


def test_after_three_kills_it_stays_away_until_a_person_says_load(
    sandbox: Sandbox, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUNGRY_BYTES", str(2 * GIB))
    monkeypatch.setenv("HUNGRY_UNTIL", "99")
    with MemoryGroup.make(GIB) as group:
        ended = ask(group, WITH_HUNGRY)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert re.search(
            r"The system killed starter 3 times because memory ran out\. Its weights take 0\.3 GiB "
            r"on disk, and [01]\.\d GiB of memory is free\. .* type /load",
            ended.stderr,
        )
        told.wait_deaths(3)
        assert ask(group, WITH_HUNGRY).returncode == 1
        assert stages(sandbox).count("check files") == 3
    session = Session(load_settings(os.environ, "starter"), os.environ, "test")
    try:
        session.start()
        assert until(lambda: isinstance(session.local.state, Failed), "it has failed", LIMIT_S)
        session.load()
        record = attempt_file(sandbox.endpoints.runtime)

        def is_tried_anew() -> bool:
            attempt = read_attempt(record)
            return attempt is not None and (attempt.deaths, attempt.level) == (0, 0)

        assert until(is_tried_anew, "it is loaded as if nothing had been", LIMIT_S)
    finally:
        session.close()
