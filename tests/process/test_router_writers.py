"""Several frontends write what they learn at once, and one of them is killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from shammah.router.store import Store
from tests.fakes.sandbox import LIMIT_S, Sandbox, until

pytestmark = pytest.mark.timeout(300)

WRITERS, ANSWERS = 4, 60

WRITER = """
import sys
from pathlib import Path
from shammah.router.route import Category
from shammah.router.route import Arm, Reason, Target
from shammah.router.statistics import Label, Outcome
from shammah.router.store import Store

path, name, answers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
arm = Arm(Category.CODE, Target.LOCAL, name)
store = Store(path, busy_s=60)
print("ready", flush=True)
sys.stdin.readline()
for number in range(answers):
    turn = f"{name}-{number}"
    store.add(Outcome(turn, 0.0, arm, Reason.USER, "stop", Label.TEXT_GOOD, True))
    store.relabel(turn, Label.GOOD)
    print(turn, flush=True)
store.close()
"""


def start(path: Path, name: str, answers: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-c", WRITER, str(path), name, str(answers)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_nothing_is_lost_when_several_frontends_write_at_once(sandbox: Sandbox) -> None:
    path = sandbox.shammah_home / "router.db"
    writers = [start(path, f"w{number}", ANSWERS) for number in range(WRITERS)]
    for one in writers:  # all have opened the new file at once
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in writers:
        one.communicate("go\n", timeout=LIMIT_S)
        assert one.returncode == 0
    store = Store(path)
    snapshot = store.read()
    store.close()
    assert snapshot.answers == WRITERS * ANSWERS
    assert [tally.successes for tally in snapshot.arms.values()] == [ANSWERS] * WRITERS
    assert snapshot.classic.total_local_attempts == WRITERS * ANSWERS


def test_a_frontend_that_is_killed_takes_at_most_its_last_answer_with_it(
    sandbox: Sandbox,
) -> None:
    path = sandbox.shammah_home / "router.db"
    victim = start(path, "victim", 10**6)
    assert victim.stdin is not None
    assert victim.stdout is not None
    assert victim.stdout.readline() == "ready\n"
    victim.stdin.write("go\n")
    victim.stdin.flush()
    told = [victim.stdout.readline() for _ in range(20)]
    os.kill(victim.pid, signal.SIGKILL)
    rest = victim.stdout.read()  # `communicate` would not see what readline has read ahead
    victim.stdin.close()
    victim.stdout.close()
    assert victim.wait(LIMIT_S) == -signal.SIGKILL
    told += [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    store = Store(path)
    answers = store.read().answers
    store.close()
    assert len(told) <= answers <= len(told) + 1
    database = sqlite3.connect(path)
    assert until(lambda: database.execute("PRAGMA integrity_check").fetchone(), "") == ("ok",)
    database.close()
