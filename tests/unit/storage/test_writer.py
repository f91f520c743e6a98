"""Jobs that nobody waits for: in their order, on one thread, and none lost at the end."""

from __future__ import annotations

import threading

import pytest

from shammah.storage.writer import BackgroundWriter
from tests.fakes.sandbox import LIMIT_S


def test_jobs_are_done_in_their_order_and_the_end_comes_last() -> None:
    done: list[object] = []
    writer = BackgroundWriter("test", lambda: done.append(threading.current_thread().name))
    assert not writer.begun
    for number in range(100):
        writer.put(lambda number=number: done.append(number))  # type: ignore[misc]
    assert writer.begun
    assert writer.close(LIMIT_S)
    assert done == [*range(100), "test"]


def test_what_fails_is_told_to_who_asks_and_stops_nobody_else() -> None:
    writer = BackgroundWriter("test")
    failed, fine = writer.put(lambda: 1 // 0), writer.put(lambda: "fine")
    assert fine.result() == "fine"
    with pytest.raises(ZeroDivisionError):
        failed.result()
    assert writer.close(LIMIT_S)


def test_leaving_waits_no_longer_than_it_may_and_may_wait_again() -> None:
    writer, held = BackgroundWriter("test"), threading.Event()
    job = writer.put(lambda: held.wait(LIMIT_S))
    assert not job.wait(0.0)
    assert not writer.close(0.0)
    held.set()
    assert writer.close(LIMIT_S)
    assert job.wait(0.0)


def test_one_without_jobs_has_no_thread_to_end() -> None:
    assert BackgroundWriter("test", lambda: pytest.fail("begun")).close(0.0)
