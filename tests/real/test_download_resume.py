"""Downloads that are killed, paused, cancelled, overtaken and shared."""

from __future__ import annotations

import contextlib
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shammah.bus.transfers import Transfer
from shammah.errors import ShammahError
from tests.real.test_download_faults import FILES, MODEL, SEGMENT, SIZE, TOTAL, WEIGHTS, Setup
from tests.real.test_download_faults import _quiet_library as _quiet_library
from tests.real.test_download_faults import make as make
from workers.download import downloads as transfers
from workers.download.control import Control
from workers.download.downloads import Downloads
from workers.download.limits import MIB, Limits
from workers.download.part import held_bytes
from workers.download.slots import Slots
from workers.listing import RemoteFile

pytestmark = pytest.mark.timeout(400)

LIMIT_S = 60.0
FOR_EVER_S = 1000.0
"""What a test waits for that long, it does not get."""

KILLS = 30
LINK = {"rate": 2 * MIB, "send_buffer": 16 * 1024}
"""A link that is slower than the reader, with little in the server's own buffers."""

_FETCH = """
import json, sys
from pathlib import Path
from workers.download.downloads import Downloads
from workers.download.limits import Limits
endpoint, cache, limits = sys.argv[1:]
downloads = Downloads(Path(cache), Limits(**json.loads(limits)), endpoint=endpoint, token=False)
print(downloads.fetch("acme/tiny"))
downloads.close()
"""
_LIMITS = '{"connections": 4, "segment_bytes": 262144, "backoff_s": 0.01, "disk_reserve": 0}'


def start(setup: Setup) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _FETCH, setup.hub.endpoint, str(setup.cache), _LIMITS],
        stdout=subprocess.PIPE,
        text=True,
    )


class Background:
    """A fetch on a thread of its own."""

    def __init__(
        self,
        setup: Setup,
        downloads: Downloads | None = None,
        revision: str = "main",
        priority: int = 0,
    ) -> None:
        self.control = Control()
        setup.at_end.append(self.control.cancel)
        self.progress: list[Transfer] = []
        self.result: Path | BaseException | None = None
        self._downloads = downloads or setup.downloads()
        self._thread = threading.Thread(target=self._run, args=(revision, priority))
        self._thread.start()

    def _run(self, revision: str, priority: int) -> None:
        try:
            self.result = self._downloads.fetch(
                MODEL,
                revision,
                priority=priority,
                control=self.control,
                on_progress=self.progress.append,
            )
        except BaseException as error:
            self.result = error

    def done(self) -> int:
        """How many bytes have arrived."""
        return self.progress[-1].done if self.progress else 0

    def verified(self) -> int:
        """Bytes of the files whose hash is right."""
        return sum(file.size for file in self.progress[-1].files if file.verified)

    def join(self) -> Any:
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()
        return self.result


class Hold:
    """Keeps the hub from sending more bytes of files than ``at``, and a little, until `release`.

    However slow whoever watches is, the download is not over by then. What is asked for meanwhile
    on a connection that is held is not heard.
    """

    def __init__(self, setup: Setup, at: int) -> None:
        self._hub = setup.hub
        self._at: float = at
        self._changed = threading.Condition()
        self._hub.on_sent = self._sent
        setup.at_end.append(self.release)

    def allow(self, more: int) -> None:
        """``more`` bytes than were sent up to now."""
        self._set(self._hub.sent_bytes + more)

    def release(self) -> None:
        self._set(float("inf"))

    def _set(self, at: float) -> None:
        with self._changed:
            self._at = at
            self._changed.notify_all()

    def _sent(self, sent: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: sent < self._at, LIMIT_S)


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


# --- kills --------------------------------------------------------------------------------

_FETCH_AGAIN_AND_AGAIN = """
import os, sys
sys.argv, source = sys.argv[:-1], sys.argv[-1]
import workers.download.downloads
program = compile(source, "fetch", "exec")
for _ in sys.stdin:
    pid = os.fork()
    if pid == 0:
        exec(program)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""Forks a fetching process for each line of its input: the imports are paid once."""


class Fetchers:
    """Processes that fetch, one after the other."""

    def __init__(self, setup: Setup) -> None:
        program = [sys.executable, "-c", _FETCH_AGAIN_AND_AGAIN]
        arguments = [setup.hub.endpoint, str(setup.cache), _LIMITS, _FETCH.replace("print", "")]
        self._hub = setup.hub
        self._process = subprocess.Popen(
            [*program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, kill_at: int | None = None) -> int:
        """The exit status of one that is killed when the hub has sent so many bytes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pids: queue.SimpleQueue[int] = queue.SimpleQueue()
        lock = threading.Lock()

        def kill(sent: int) -> None:
            with lock:
                if killed:
                    raise ConnectionAbortedError  # nobody reads what would be sent now
                if kill_at is not None and sent >= kill_at:
                    killed.append(pids.get(timeout=LIMIT_S))
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(killed[0], signal.SIGKILL)

        killed: list[int] = []
        self._hub.on_sent = kill
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        pids.put(int(self._process.stdout.readline()))
        status = int(self._process.stdout.readline())
        self._hub.on_sent = None
        return status

    def close(self) -> None:
        self._process.communicate(timeout=LIMIT_S)


def test_thirty_kills_cost_little_and_the_result_is_right(make: Callable[..., Setup]) -> None:
    rng = random.Random(20261123)
    files = {**FILES, WEIGHTS: rng.randbytes(6 * MIB)}
    setup = make(files, **LINK)
    total = sum(len(content) for content in files.values())
    fetchers = Fetchers(setup)
    kills = 0
    while fetchers.run(setup.hub.sent_bytes + rng.randrange(1, total // KILLS)):
        kills += 1
        setup.check_blobs()
        if kills == KILLS:
            break
    assert kills == KILLS
    assert fetchers.run() == 0
    fetchers.close()
    snapshot = setup.downloads().complete(MODEL)
    assert snapshot is not None
    setup.check_whole(snapshot)
    # A mebibyte for each kill is allowed at full size; these segments are small.
    assert setup.hub.sent_bytes <= total + kills * MIB // 8


def test_a_part_is_completed_by_the_bytes_that_miss(make: Callable[..., Setup]) -> None:
    setup = make(**LINK)
    hold = Hold(setup, 6 * SEGMENT)
    background = Background(setup)
    until(lambda: background.done() > 5 * SEGMENT)
    background.control.cancel()
    assert isinstance(background.join(), ShammahError)
    hold.release()
    until(lambda: setup.hub.connections <= 1)  # nothing is sent any more
    missing = setup.downloads().plan(MODEL, config=False).missing
    sent = setup.hub.sent_bytes
    assert missing < TOTAL - 3 * SEGMENT
    setup.arrives()
    assert setup.hub.sent_bytes - sent == missing


# --- pause, resume, cancel ----------------------------------------------------------------

LATER = {"Retry-After": f"{FOR_EVER_S:.0f}"}


def test_a_pause_lets_go_of_the_connections(make: Callable[..., Setup]) -> None:
    setup = make(**LINK)
    hold = Hold(setup, 3 * SEGMENT)
    background = Background(setup)
    until(lambda: setup.hub.sent[WEIGHTS] > 2 * SEGMENT)
    background.control.pause()
    hold.release()
    until(lambda: setup.hub.connections <= 1)  # one for questions about the model is kept
    asked = len(setup.hub.asked)
    assert background.result is None
    background.control.resume()
    setup.check_whole(background.join())
    assert len(setup.hub.asked) > asked
    done = [progress.done for progress in background.progress]
    assert done == sorted(done)
    assert done[-1] == TOTAL


@pytest.mark.parametrize("kind", ["stall", "silent"])
def test_a_cancel_does_not_wait_for_the_network(make: Callable[..., Setup], kind: str) -> None:
    setup = make()
    setup.hub.fault(WEIGHTS, kind, at=1000, times=None)
    background = Background(setup, setup.downloads(stall_s=FOR_EVER_S))
    until(lambda: setup.hub.count(WEIGHTS) == 4)
    background.control.cancel()
    failure = background.join()
    assert isinstance(failure, ShammahError)
    assert failure.code == "download_cancelled"
    setup.check_blobs()


@pytest.mark.parametrize("act", ["pause", "wait"])
def test_a_cancel_ends_pauses_and_waits(make: Callable[..., Setup], act: str) -> None:
    setup = make(**LINK)
    hold = Hold(setup, SEGMENT // 2)
    if act == "wait":
        setup.hub.fault(WEIGHTS, "status", status=429, headers=LATER, times=None)
    background = Background(setup, setup.downloads(retry_after_max_s=FOR_EVER_S))
    if act == "wait":
        until(lambda: setup.hub.count(WEIGHTS) == 4)
    else:
        until(lambda: setup.hub.sent[WEIGHTS] > 0)
        background.control.pause()
    hold.release()
    background.control.cancel()
    failure = background.join()
    assert failure.code == "download_cancelled"


def test_a_cancel_ends_the_wait_for_an_answer_about_the_model(make: Callable[..., Setup]) -> None:
    setup = make()
    setup.hub.fault("tree", "status", status=429, headers=LATER, times=None)
    background = Background(setup, setup.downloads(retry_after_max_s=FOR_EVER_S))
    until(lambda: setup.hub.count("tree") == 1)
    background.control.cancel()
    assert background.join().code == "download_cancelled"


def test_a_download_that_waits_for_a_lock_can_be_cancelled(make: Callable[..., Setup]) -> None:
    setup = make()
    setup.hub.fault(WEIGHTS, "stall", times=None)
    first = Background(setup, setup.downloads(stall_s=FOR_EVER_S))
    until(lambda: setup.hub.count(WEIGHTS) == 4)
    second = Background(setup)
    until(lambda: setup.hub.count("tree") == 2)
    second.control.cancel()
    assert second.join().code == "download_cancelled"
    first.control.cancel()
    assert first.join().code == "download_cancelled"


# --- several at once ----------------------------------------------------------------------


def test_two_processes_share_one_transfer(make: Callable[..., Setup]) -> None:
    setup = make(rate=MIB / 4)
    processes = [start(setup), start(setup)]
    outputs = [process.communicate(timeout=LIMIT_S)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1]
    setup.check_whole(Path(outputs[0]))
    assert setup.hub.sent_bytes == TOTAL


def test_a_process_takes_over_from_one_that_is_killed(make: Callable[..., Setup]) -> None:
    setup = make(send_buffer=16 * 1024)
    setup.hub.fault(WEIGHTS, "stall", at=3 * SEGMENT, times=4)
    first = start(setup)
    until(lambda: held(setup) >= 9 * SEGMENT)  # three of four segments
    second = start(setup)
    until(lambda: setup.hub.count("tree") == 2)
    first.kill()
    assert first.communicate(timeout=LIMIT_S)[0] == ""
    setup.check_whole(Path(second.communicate(timeout=LIMIT_S)[0].strip()))
    assert second.returncode == 0
    assert setup.hub.sent_bytes <= TOTAL + MIB // 2


def held(setup: Setup) -> int:
    """Bytes of the weights that are on the disk, by their journal."""
    file = setup.hub.commits[setup.hub.main][WEIGHTS]
    weights = RemoteFile(WEIGHTS, SIZE, file.sha256, file.git_sha1)
    return held_bytes(setup.root / "shammah" / "parts", weights)


def test_two_threads_of_one_process_share_one_transfer(make: Callable[..., Setup]) -> None:
    setup = make(rate=4 * MIB)
    downloads = setup.downloads()
    both = [Background(setup, downloads), Background(setup, downloads)]
    for background in both:
        setup.check_whole(background.join())
    assert setup.hub.sent_bytes == TOTAL


def test_what_somebody_waits_for_comes_first(
    make: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = Slots(1)
    monkeypatch.setattr(transfers, "Slots", lambda count: slots)
    setup = make(rate=2 * MIB)
    old = setup.hub.main
    setup.hub.publish({**FILES, WEIGHTS: random.Random(9).randbytes(4 * SEGMENT)})
    downloads = setup.downloads(connections=1)
    hold = Hold(setup, SEGMENT)
    patient = Background(setup, downloads, old)
    until(lambda: setup.hub.sent[WEIGHTS] >= SEGMENT)
    urgent = Background(setup, downloads, priority=1)
    until(lambda: slots.outranked(0))
    hold.allow(6 * SEGMENT)  # enough for the urgent one, and too little for the other
    setup.check_whole(urgent.join())
    assert patient.result is None
    hold.release()
    setup.check_whole(patient.join())


# --- a branch that moves ------------------------------------------------------------------


def test_a_branch_that_moves_before_the_resume(make: Callable[..., Setup]) -> None:
    setup = make(**LINK)
    hold = Hold(setup, 4 * SEGMENT)
    background = Background(setup)
    until(lambda: background.done() > 3 * SEGMENT)
    # What is small comes first, and is here.
    until(lambda: background.verified() >= TOTAL - SIZE)
    background.control.cancel()
    hold.release()
    assert isinstance(background.join(), ShammahError)
    setup.hub.publish({**FILES, WEIGHTS: FILES[WEIGHTS][:-1] + b"x"})
    snapshot = setup.arrives()
    assert snapshot.name == setup.hub.main
    assert setup.hub.count("tokenizer.json") == 1


def test_a_branch_that_moves_during_the_download(make: Callable[..., Setup]) -> None:
    setup = make()
    before = setup.hub.main
    after = {**FILES, WEIGHTS: random.Random(8).randbytes(len(FILES[WEIGHTS]))}
    setup.hub.fault(WEIGHTS, "hook", at=1000, call=lambda: setup.hub.publish(after))
    assert setup.arrives().name == before
    downloads = setup.downloads()
    assert downloads.fetch(MODEL).name == before  # complete: the Hub is not asked
    snapshot = downloads.fetch(MODEL, update=True)
    assert snapshot.name == setup.hub.main
    setup.check_whole(snapshot)


def test_a_commit_that_vanishes_during_the_download(make: Callable[..., Setup]) -> None:
    setup = make()
    setup.hub.fault(WEIGHTS, "hook", at=1000, call=setup.hub.commits.clear)
    setup.fails("revision_not_found")


def test_limits_have_the_promised_defaults() -> None:
    limits = Limits()
    assert limits.connections == 8
    assert limits.stall_s == 30.0


def test_what_a_kill_has_left_of_a_file_that_is_whole_is_removed(
    make: Callable[..., Setup],
) -> None:
    """The blob was in its place, and its journal not gone yet."""
    setup = make()
    snapshot = setup.arrives()
    parts = setup.root / "shammah" / "parts"
    etags = {path.resolve().name for path in snapshot.iterdir()}
    for etag in etags:
        (parts / f"{etag}.journal").write_text("{}")
    (setup.root / "shammah" / f"{snapshot.name}.json").unlink()  # as if it had not been whole
    setup.arrives()
