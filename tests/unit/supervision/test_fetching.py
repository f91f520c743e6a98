"""A download that is followed to its end, whatever becomes of the connection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from shammah.bus.client import Peer, Task
from shammah.bus.messages import Failed
from shammah.bus.transfers import Fetch, Fetched, FetchProgress, Transfer
from shammah.errors import ShammahError
from shammah.supervision.download import FetchReply, FollowedFetch

MODEL = "acme/tiny"
WHOLE = Fetched("", MODEL, "c", "/cache")


class FakePeer:
    """A connection whose worker says this."""

    def __init__(self, *replies: FetchReply, stopped: bool = False) -> None:
        self.stopped = stopped
        self.closed = False
        self._replies = replies

    def begin(self, request: Fetch) -> Task:
        assert request.model == MODEL
        return cast(Task, iter(self._replies))

    def close(self) -> None:
        self.closed = True


def follow(*peers: FakePeer) -> tuple[list[FetchReply], int]:
    """What is told, and how often the worker was restarted."""
    restarts: list[None] = []
    connections: Iterator[FakePeer] = iter(peers)

    def connect() -> Peer:
        peer = next(connections, None)
        if peer is None:
            raise ShammahError("worker_silent", "It does not answer.")
        return cast(Peer, peer)

    followed = FollowedFetch(connect, Fetch("", MODEL), on_restart=lambda: restarts.append(None))
    told = list(followed)
    assert all(peer.closed for peer in peers)
    return told, len(restarts)


def progress(done: int) -> FetchProgress:
    return FetchProgress("", Transfer(MODEL, "c", "running", done, 100))


def failed(code: str) -> Failed:
    return Failed(code, "Why.")


def test_a_worker_that_died_is_started_anew_and_nothing_goes_backwards() -> None:
    told, restarts = follow(
        FakePeer(progress(50), failed("worker_died")), FakePeer(progress(40), WHOLE)
    )
    assert told == [progress(50), progress(50), WHOLE]
    assert restarts == 1


@pytest.mark.parametrize("code", ["lease_lapsed", "not_attached"])
def test_a_lease_that_has_lapsed_is_taken_anew_without_a_word(code: str) -> None:
    """The download goes on without us. However often: a slow machine is no failure."""
    gone = [FakePeer(progress(50), failed(code)) for _ in range(10)]
    told, restarts = follow(*gone, FakePeer(progress(60), WHOLE))
    assert told == [progress(50)] * 10 + [progress(60), WHOLE]
    assert restarts == 0


def test_after_a_lapse_a_death_is_told_all_the_same() -> None:
    died = FakePeer(failed("worker_died"))
    assert follow(FakePeer(failed("lease_lapsed")), died, FakePeer(WHOLE)) == ([WHOLE], 1)


def test_a_worker_that_was_stopped_stays_so() -> None:
    stopped = FakePeer(failed("worker_died"), stopped=True)
    assert follow(stopped) == ([failed("worker_died")], 0)


def test_what_the_worker_refuses_is_the_end() -> None:
    assert follow(FakePeer(failed("model_not_found"))) == ([failed("model_not_found")], 0)
