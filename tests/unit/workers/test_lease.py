"""When a worker has users, and when it leaves for want of them."""

from __future__ import annotations

import pytest

from shammah.bus.messages import ClientInfo
from workers.lease import FIRST_LEASE_S, LEASE_S, STILL_S, LeaseTable

REPL, ASK = ClientInfo("repl", 1, "/dev/pts/1"), ClientInfo("ask", 2)
A, B = b"a", b"b"


class WatchedTable(LeaseTable):
    """Knows when it was looked at last."""

    def __init__(self, keep_alive: float, now: float) -> None:
        super().__init__(keep_alive, now)
        self.seen = now

    def lapse(self, now: float) -> list[bytes]:
        self.seen = now
        return super().lapse(now)


def lapse(table: WatchedTable, now: float) -> list[bytes]:
    """Who has lapsed up to ``now``, if it is looked all the time."""
    lapsed = []
    while table.seen + STILL_S / 2 < now:
        lapsed += table.lapse(table.seen + STILL_S / 2)
    return lapsed + table.lapse(now)


def test_a_lease_lasts_until_it_lapses() -> None:
    table = WatchedTable(0, 100)
    table.attach(A, REPL, 100)
    assert lapse(table, 100 + LEASE_S - 0.001) == []
    assert table.peers() == [A]
    assert lapse(table, 100 + LEASE_S) == [A]
    assert table.peers() == []
    assert lapse(table, 200) == []


def test_a_ping_renews_its_own_lease_alone() -> None:
    table = WatchedTable(0, 0)
    table.attach(A, REPL, 0)
    table.attach(B, ASK, 0)
    assert table.renew(A, 2)
    assert lapse(table, LEASE_S) == [B]
    assert len(table) == 1
    assert lapse(table, 2 + LEASE_S) == [A]


def test_what_has_lapsed_is_not_renewed() -> None:
    table = WatchedTable(0, 0)
    table.attach(A, REPL, 0)
    lapse(table, LEASE_S)
    assert not table.renew(A, LEASE_S)
    assert not table.renew(b"never seen", 0)


def test_a_second_hello_is_no_second_lease() -> None:
    table = WatchedTable(0, 0)
    table.attach(A, REPL, 0)
    table.attach(A, ASK, 2)
    assert len(table) == 1
    assert table.others(B) == (ASK,)
    assert lapse(table, LEASE_S) == []


def test_detach_gives_the_lease_back_once() -> None:
    table = WatchedTable(300, 0)
    table.attach(A, REPL, 0)
    assert table.detach(A, 1)
    assert not table.detach(A, 2)
    assert not table.expired(1 + 299)
    assert table.expired(1 + 300)


def test_others_are_all_but_the_one_that_asks() -> None:
    table = WatchedTable(0, 0)
    table.attach(A, REPL, 0)
    table.attach(B, ASK, 0)
    assert table.others(A) == (ASK,)
    assert table.others(B) == (REPL,)
    assert set(table.others(b"c")) == {REPL, ASK}
    assert table.peers() == [A, B]


def test_another_connection_of_the_same_frontend_is_no_other() -> None:
    table = WatchedTable(0, 0)
    table.attach(A, REPL, 0)
    table.attach(B, REPL, 0)
    table.attach(b"c", ASK, 0)
    assert table.others(A) == table.others(B) == (ASK,)
    assert table.others(b"c") == (REPL, REPL)


@pytest.mark.parametrize("keep_alive", [0, 0.5, FIRST_LEASE_S])
def test_a_worker_waits_for_its_first_frontend(keep_alive: float) -> None:
    table = WatchedTable(keep_alive, 50)
    assert not table.expired(50)
    assert not table.expired(50 + FIRST_LEASE_S - 0.001)
    assert table.expired(50 + FIRST_LEASE_S)


def test_a_longer_keep_alive_counts_for_the_first_frontend_too() -> None:
    table = WatchedTable(300, 0)
    assert not table.expired(299.9)
    assert table.expired(300)


@pytest.mark.parametrize("ever_attached", [False, True])
def test_keep_alive_of_minus_1_is_for_ever(ever_attached: bool) -> None:
    table = WatchedTable(-1, 0)
    if ever_attached:
        table.attach(A, REPL, 0)
        table.detach(A, 1)
    assert not table.expired(1e9)


def test_keep_alive_0_ends_at_once_after_the_last_lease() -> None:
    table = WatchedTable(0, 0)
    table.attach(A, REPL, 0)
    table.attach(B, ASK, 0)
    table.detach(A, 1)
    assert not table.expired(1)
    table.detach(B, 1)
    assert table.expired(1)


def test_a_used_worker_never_expires() -> None:
    table = WatchedTable(0, 0)
    table.attach(A, REPL, 0)
    assert not table.expired(1e9)


def test_the_clock_of_keep_alive_starts_anew_with_every_last_lease() -> None:
    table = WatchedTable(10, 0)
    table.attach(A, REPL, 0)
    table.detach(A, 5)
    table.attach(B, ASK, 14)
    assert lapse(table, 14 + LEASE_S) == [B]
    assert not table.expired(14 + LEASE_S + 9)
    assert table.expired(14 + LEASE_S + 10)


def test_a_lapse_starts_the_clock_when_it_is_seen() -> None:
    """Nothing is judged while the worker was busy; the keep_alive is not eaten by that."""
    table = WatchedTable(10, 0)
    table.attach(A, REPL, 0)
    assert lapse(table, LEASE_S - 0.1) == []
    assert table.lapse(LEASE_S + 0.8) == [A]
    assert not table.expired(LEASE_S + 10.7)
    assert table.expired(LEASE_S + 10.8)


def test_what_the_worker_stood_still_for_does_not_count() -> None:
    """If the whole machine was put aside, nobody has had a chance to ping."""
    table = WatchedTable(0, 0)
    table.attach(A, REPL, 0)
    table.attach(B, ASK, 0)
    assert lapse(table, 2) == []
    assert table.renew(B, 60)  # it waited in the socket
    assert table.lapse(60) == []
    assert lapse(table, 60 + LEASE_S - 2 - 0.001) == []
    assert lapse(table, 60 + LEASE_S - 2) == [A]
    assert lapse(table, 60 + LEASE_S) == [B]  # and no more than a lease is given
