"""One log file per role, which does not grow for ever."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.sandbox import Sandbox
from workers.logs import KEPT_FILES, LogFile

LIMIT = 100


@pytest.fixture
def log(sandbox: Sandbox) -> Iterator[LogFile]:
    """This process, which may adopt it in the test, gets its stdout and stderr back after it."""
    before = [os.dup(1), os.dup(2)]
    yield LogFile(sandbox.shammah_home, "inference", max_bytes=LIMIT)
    for number, fd in enumerate(before, 1):
        os.dup2(fd, number)
        os.close(fd)


def write(text: str) -> None:
    os.write(2, text.encode())


def files(log: LogFile) -> list[str]:
    return sorted(path.name for path in log.path.parent.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_written_to_stdout_and_stderr_lands_in_it(log: LogFile) -> None:
    log.adopt()
    os.write(1, b"out\n")
    write("err\n")
    assert log.path.read_text() == "out\nerr\n"
    assert (mode(log.path), mode(log.path.parent)) == (0o600, 0o700)


def test_an_earlier_log_is_continued(log: LogFile) -> None:
    log.adopt()
    write("one\n")
    log.adopt()
    write("two\n")
    assert log.path.read_text() == "one\ntwo\n"


def test_a_short_log_is_left_alone(log: LogFile) -> None:
    log.adopt()
    write("x" * (LIMIT - 1))
    assert not log.rotate_if_long()
    assert files(log) == ["inference.log"]


def test_a_long_log_is_put_aside_and_a_new_one_begun(log: LogFile) -> None:
    log.adopt()
    write("x" * LIMIT)
    assert log.rotate_if_long()
    write("new")
    assert log.path.read_text() == "new"
    assert log.path.with_name("inference.log.1").read_text() == "x" * LIMIT
    assert mode(log.path) == 0o600
    assert not log.rotate_if_long()


def test_only_so_many_are_kept_the_newest_first(log: LogFile) -> None:
    log.adopt()
    for number in range(KEPT_FILES + 3):
        write(f"{number}" * LIMIT)
        assert log.rotate_if_long()
    assert files(log) == ["inference.log", *(f"inference.log.{n + 1}" for n in range(KEPT_FILES))]
    newest = [log.path.with_name(f"inference.log.{n + 1}").read_text()[0] for n in range(3)]
    assert newest == ["5", "4", "3"]


def test_a_log_that_somebody_has_deleted_does_not_end_the_worker(log: LogFile) -> None:
    log.adopt()
    write("x" * LIMIT)
    log.path.unlink()
    log.rotate_if_long()
    write("new")
    assert log.path.read_text() == "new"


def test_a_home_that_somebody_has_deleted_does_not_end_the_worker(log: LogFile) -> None:
    log.adopt()
    write("x" * LIMIT)
    shutil.rmtree(log.path.parents[1])
    log.rotate_if_long()


def test_a_log_that_cannot_be_put_aside_does_not_end_the_worker(log: LogFile) -> None:
    log.adopt()
    (log.path.with_name("inference.log.1") / "full").mkdir(parents=True)
    write("x" * LIMIT)
    log.rotate_if_long()
    write("still here")


def test_of_an_exception_it_shows_types_and_places_but_no_words() -> None:
    """What a library says may quote an answer; what the system says does not."""
    code = (
        "import logging, threading\n"
        "from workers.logs import configure_logging\n"
        "configure_logging('inference')\n"
        "def answer():\n"
        "    raise ValueError('quoted ' + 'text')\n"
        "def work():\n"
        "    try:\n"
        "        answer()\n"
        "    except ValueError:\n"
        "        raise OSError(28, 'No space left')\n"
        "try:\n"
        "    work()\n"
        "except OSError:\n"
        "    logging.getLogger('here').exception('it failed')\n"
        "thread = threading.Thread(target=answer)\n"
        "thread.start()\n"
        "thread.join()\n"
        "answer()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "quoted text" not in ended.stderr
    assert ended.stderr.count("ValueError\n") == 3
    assert ended.stderr.count("OSError: [Errno 28] No space left\n") == 1
    assert "in answer" in ended.stderr
    assert " ERROR inference[" in ended.stderr
