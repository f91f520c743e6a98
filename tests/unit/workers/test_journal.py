"""Numbered snapshots, and what of them is kept."""

from __future__ import annotations

import itertools

from shammah.bus.messages import Ready, Status
from workers.journal import KEPT_EVENTS, Journal

STATUS = Status(Ready("starter"))


def journal() -> Journal:
    clock = itertools.count(100)
    return Journal("inference", "run", lambda: float(next(clock)), lambda: 1e9)


def test_events_are_numbered_from_1_without_gaps() -> None:
    log = journal()
    assert [log.record("state", STATUS).seq for _ in range(5)] == [1, 2, 3, 4, 5]


def test_an_event_says_who_when_why_and_for_which_request() -> None:
    event = journal().record("accepted", STATUS, "r1")
    assert (event.role, event.run_id, event.what, event.request_id) == (
        "inference", "run", "accepted", "r1",
    )  # fmt: skip
    assert (event.monotonic_s, event.wall_s, event.status) == (100.0, 1e9, STATUS)


def test_replay_gives_what_came_after() -> None:
    log = journal()
    events = [log.record("state", STATUS) for _ in range(5)]
    assert log.since(0) == (tuple(events), True)
    assert log.since(3) == (tuple(events[3:]), True)
    assert log.since(5) == ((), True)


def test_replay_of_nothing() -> None:
    assert journal().since(0) == ((), True)


def test_replay_from_the_future_gives_nothing() -> None:
    log = journal()
    log.record("state", STATUS)
    assert log.since(99) == ((), True)


def test_the_oldest_are_dropped_and_replay_says_so() -> None:
    log = journal()
    for _ in range(KEPT_EVENTS + 2):
        log.record("state", STATUS)
    for since, complete in ((0, False), (1, False), (2, True), (3, True)):
        events, whole = log.since(since)
        assert whole is complete, since
        assert events[0].seq == max(since + 1, 3)
        assert events[-1].seq == KEPT_EVENTS + 2


def test_replay_since_before_the_first_event_is_complete_while_all_are_kept() -> None:
    log = journal()
    event = log.record("state", STATUS)
    assert log.since(-5) == ((event,), True)
