"""How often a worker that dies is started again."""

from __future__ import annotations

from shammah.supervision.lifecycle import RESTART_WINDOW_S, RESTARTS, RestartBudget


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_few_restarts_and_no_more() -> None:
    clock = Clock()
    budget = RestartBudget(clock)
    assert [budget.spend() for _ in range(RESTARTS + 2)] == [True] * RESTARTS + [False, False]
    clock.now += RESTART_WINDOW_S - 0.001
    assert not budget.spend()


def test_each_start_counts_for_the_window() -> None:
    clock = Clock()
    budget = RestartBudget(clock)
    for _ in range(RESTARTS):
        assert budget.spend()
        clock.now += 10
    assert not budget.spend()  # the first was RESTARTS * 10 s ago
    clock.now = 1000 + RESTART_WINDOW_S
    assert budget.spend()
    assert not budget.spend()  # the second is now the oldest
    clock.now += 10
    assert budget.spend()


def test_a_refusal_does_not_count() -> None:
    clock = Clock()
    budget = RestartBudget(clock)
    for _ in range(RESTARTS):
        budget.spend()
    for _ in range(100):
        clock.now += 0.1
        assert not budget.spend()
    clock.now = 1000 + RESTART_WINDOW_S
    assert budget.spend()


def test_a_worker_that_dies_rarely_is_always_started() -> None:
    clock = Clock()
    budget = RestartBudget(clock)
    for _ in range(50):
        assert budget.spend()
        clock.now += RESTART_WINDOW_S / RESTARTS
