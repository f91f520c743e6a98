"""Threads that share the phases of a step."""

from __future__ import annotations

import gc
import threading
import time

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from workers.inference.engines.native.thread_pool import ThreadPool


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("native_")]


def meet(pool: ThreadPool) -> None:
    """Have every member wait for all others, so that each needs a thread of its own."""
    barrier = threading.Barrier(pool.size)
    pool.run(lambda member: barrier.wait(60))


def test_every_member_works_once_and_all_at_once() -> None:
    pool = ThreadPool(4)
    seen: list[int] = []
    pool.run(seen.append)
    pool.run(seen.append)
    assert sorted(seen) == [0, 0, 1, 1, 2, 2, 3, 3]
    meet(pool)
    pool.close()


def test_an_error_of_a_helper_is_raised_and_the_pool_goes_on() -> None:
    pool = ThreadPool(2)

    def fail(member: int) -> None:
        if member == 1:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        pool.run(fail)
    pool.run(lambda member: None)
    pool.close()


def test_after_an_error_nobody_is_left_at_the_work() -> None:
    """Or the next work would begin while that one goes on."""
    pool, failed, ended = ThreadPool(3), threading.Event(), threading.Event()

    def fail(member: int) -> None:
        if member == 1:
            failed.set()
            raise ValueError("no")
        if member == 2:
            assert failed.wait(60)
            time.sleep(0.05)  # long enough to be seen if nobody waited
            ended.set()

    with pytest.raises(ValueError, match="no"):
        pool.run(fail)
    assert ended.is_set()
    seen: list[int] = []
    pool.run(seen.append)
    assert sorted(seen) == [0, 1, 2]
    pool.close()


def test_threads_end_with_the_pool() -> None:
    before = len(helpers())
    closed, forgotten = ThreadPool(3), ThreadPool(2)
    meet(closed)
    meet(forgotten)
    assert len(helpers()) == before + 3
    closed.close()
    del forgotten
    gc.collect()
    deadline = time.monotonic() + 60
    while len(helpers()) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(helpers()) == before


@pytest.mark.parametrize("members", [1, 2, 6])
def test_items_are_done_once_and_phases_follow_each_other(members: int) -> None:
    from workers.inference.engines.native.operands import Counters, new_counters
    from workers.inference.engines.native.phases import finish_item, next_item, wait_for_all

    def double_then_sum(
        counters: Counters, numbers: NDArray[np.int64], sums: NDArray[np.int64]
    ) -> None:
        items = numbers.shape[0]
        item = next_item(counters, 0)
        while item < items:
            numbers[item] *= 2
            finish_item(counters, 0)
            item = next_item(counters, 0)
        wait_for_all(counters, 0, items)
        item = next_item(counters, 1)
        while item < items:
            sums[item] = numbers.sum()
            finish_item(counters, 1)
            item = next_item(counters, 1)
        wait_for_all(counters, 1, items)

    kernel = numba.njit(nogil=True)(double_then_sum)
    pool = ThreadPool(members)
    for items in (0, 1, 7, 1000):
        numbers, sums = np.arange(items, dtype=np.int64), np.zeros(items, np.int64)
        counters = new_counters(1, adapted=False)
        pool.run(lambda _, n=numbers, s=sums, c=counters: kernel(c, n, s))
        assert (numbers == 2 * np.arange(items)).all()
        assert (sums == items * (items - 1)).all()
    pool.close()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_nobody_waits_for_what_a_failed_member_has_taken(failing: int) -> None:
    """Of a step's three members one takes an item of the first phase and never finishes it."""
    from workers.inference.engines.native.operands import GIVEN_UP, Counters, new_counters
    from workers.inference.engines.native.phases import next_item, wait_for_all

    @numba.njit(nogil=True)
    def wait(counters: Counters) -> int:
        wait_for_all(counters, 0, 3)
        return next_item(counters, 1)

    pool, counters, items = ThreadPool(3), new_counters(1, adapted=False), []
    wait(np.full_like(counters, 3))  # compile it

    def work(member: int) -> None:
        if member == failing:
            raise ValueError("no")
        items.append(wait(counters))

    def stop() -> None:
        counters[0, GIVEN_UP] = 1

    with pytest.raises(ValueError, match="no"):
        pool.run(work, stop)
    assert len(items) == 2
    assert min(items) > 1 << 50  # nor is anything left to do
    pool.close()


def test_closing_ends_what_is_being_done() -> None:
    pool, begun, stopped = ThreadPool(2), threading.Event(), threading.Event()

    def work(member: int) -> None:
        begun.set()
        assert stopped.wait(60)

    caller = threading.Thread(target=pool.run, args=(work, stopped.set))
    caller.start()
    assert begun.wait(60)
    pool.close()
    caller.join(60)
    assert not caller.is_alive()
