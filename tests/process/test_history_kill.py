"""Several frontends write the history at once, and they are killed at any moment."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shammah.history.store import Store
from tests.fakes.sandbox import LIMIT_S, Sandbox

pytestmark = pytest.mark.timeout(300)

KILLS = 20
WRITERS, TURNS = 4, 40

FRONTEND = """
import sys
from pathlib import Path
from shammah.history import recorder as module
from shammah.chat.conversation import Conversation
from shammah.chat.conversation import Turn

module.KEEP_S = module.CLOSE_S = 60
complaints = []
recorder = module.Recorder(Path(sys.argv[1]), enabled=True, report=complaints.append)
for number in range(int(sys.argv[3])):
    key = f"{sys.argv[2]}-{number}"
    recorder.keep(Turn(key, "word " * 400, at=float(number), key=key), Conversation())
    print(key, flush=True)  # as the prompt shows that it has finished
recorder.close()
assert complaints == []
"""


def start(path: Path, name: str, turns: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-c", FRONTEND, str(path), name, str(turns)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kept(path: Path) -> dict[str, int]:
    """The key of each turn, and its conversation."""
    store = Store(path)
    talks = [store.read(number) for number in store.numbers()]
    store.close()
    return {one.key: talk.number for talk in talks if talk for one in talk.turns}


def check_file(path: Path) -> None:
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.execute("INSERT INTO words (words) VALUES ('integrity-check')")
    database.close()


def test_what_was_shown_as_finished_is_there_after_a_kill_at_any_moment(sandbox: Sandbox) -> None:
    path = sandbox.shammah_home / "history.db"
    dice = random.Random()
    shown: list[str] = []
    for number in range(KILLS):
        victim = start(path, f"v{number}", 10**6)
        assert victim.stdout is not None
        for _ in range(number % 5):  # every fifth may not even have opened the file
            shown.append(victim.stdout.readline().strip())
        time.sleep(dice.uniform(0, 0.06))
        os.kill(victim.pid, signal.SIGKILL)
        rest = victim.stdout.read()  # not communicate, which overlooks what is buffered
        victim.stdout.close()
        victim.wait(LIMIT_S)
        shown += [line[:-1] for line in rest.splitlines(keepends=True) if line.endswith("\n")]
        there = kept(path)
        assert set(shown) <= set(there)
        assert len(there) <= len(shown) + number + 1  # and of each at most the one in hand
    check_file(path)
    assert len(shown) > KILLS


def test_several_frontends_write_at_once_and_nothing_is_lost(sandbox: Sandbox) -> None:
    path = sandbox.shammah_home / "history.db"
    writers = [start(path, f"w{number}", TURNS) for number in range(WRITERS)]
    for one in writers:
        one.communicate(timeout=LIMIT_S)
        assert one.returncode == 0
    there = kept(path)
    assert len(there) == WRITERS * TURNS
    for number in range(WRITERS):  # each has a conversation of its own
        assert len({talk for key, talk in there.items() if key.startswith(f"w{number}-")}) == 1
    assert len(set(there.values())) == WRITERS
    check_file(path)
