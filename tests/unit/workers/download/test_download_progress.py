"""Progress never goes backwards, whatever is fetched again, and comes five times a second."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.bus.transfers import Transfer
from workers.download.progress import INTERVAL_S, NOTICES, SILENCE_S, Meter
from workers.listing import RemoteFile

SIZES = {"a": 1000, "b": 50, "c": 0}
FILES = [RemoteFile(path, size, "f" * 64, None) for path, size in SIZES.items()]


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def verified(transfer: Transfer) -> int:
    """Bytes of the files whose hash is right."""
    return sum(file.size for file in transfer.files if file.verified)


class Watched:
    """A meter with a clock of its own, and everything that was seen of it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.seen: list[tuple[float, Transfer]] = []
        self.meter = Meter("acme/tiny", "c" * 40, FILES, self._see, self.clock)

    def _see(self, progress: Transfer) -> None:
        self.seen.append((self.clock.now_s, progress))


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(sorted(SIZES)), st.integers(0, 1200)),
        st.tuples(st.just("lost"), st.sampled_from(sorted(SIZES)), st.just(0)),
        st.tuples(st.just("verified"), st.sampled_from(sorted(SIZES)), st.just(0)),
        st.tuples(st.just("tick"), st.just(""), st.integers(0, 400)),
    ),
    max_size=60,
)


@given(steps)
def test_the_observer_never_sees_a_step_back(steps: list[tuple[str, str, int]]) -> None:
    watched = Watched()
    for kind, path, number in steps:
        if kind == "tick":
            watched.clock.now_s += number / 1000
        elif kind == "add":
            watched.meter.add(path, number, number)
        elif kind == "lost":
            watched.meter.lost(path)
        else:
            watched.meter.verified(path)
    watched.meter.finish()
    for (_, before), (_, after) in itertools.pairwise(watched.seen):
        assert after.done >= before.done
        assert verified(after) >= verified(before)
        for earlier, later in zip(before.files, after.files, strict=True):
            assert later.done >= earlier.done
    # The last byte and the end are told at once.
    times = [seen_s for seen_s, progress in watched.seen[:-1] if progress.phase == "running"]
    assert all(b - a >= INTERVAL_S for a, b in itertools.pairwise(times))
    for _, progress in watched.seen:
        assert verified(progress) <= progress.done <= progress.total == 1050
        assert progress.done == sum(file.done for file in progress.files)
        assert progress.rate >= 0


def test_rate_and_remaining_time_come_from_what_arrived_lately() -> None:
    watched = Watched()
    for _ in range(20):
        watched.clock.now_s += 1
        watched.meter.add("a", 25, 25)
    progress = watched.meter.snapshot()
    assert progress.rate == pytest.approx(25)
    assert progress.eta_s == pytest.approx((1050 - 500) / 25)
    watched.clock.now_s += 1000  # nothing comes any more
    assert watched.meter.snapshot().rate < 1


def test_bytes_that_are_fetched_again_count_in_the_remaining_time_only() -> None:
    watched = Watched()
    watched.clock.now_s += 1
    watched.meter.add("a", 1000, 1000)
    watched.meter.lost("a")
    progress = watched.meter.snapshot()
    assert (progress.done, verified(progress)) == (1000, 0)
    assert progress.eta_s == pytest.approx(1050 / 1000)
    assert watched.meter.missing() == 1050


def test_what_was_there_before_is_done_but_not_received() -> None:
    watched = Watched()
    watched.clock.now_s += 1
    watched.meter.add("a", 400)
    progress = watched.meter.snapshot()
    assert (progress.done, progress.rate, progress.eta_s) == (400, 0.0, None)


def test_the_end_is_whole() -> None:
    watched = Watched()
    for path in SIZES:
        watched.meter.verified(path)
    watched.meter.finish()
    last = watched.seen[-1][1]
    assert (last.done, verified(last), last.total, last.eta_s) == (1050, 1050, 1050, 0.0)
    assert all(file.verified for file in last.files)


def test_the_last_byte_is_told_at_once() -> None:
    watched = Watched()
    watched.meter.add("a", 1000, 1000)
    watched.meter.add("b", 49, 49)
    assert watched.seen[-1][1].phase == "running"
    watched.meter.add("b", 1, 1)
    assert watched.seen[-1][1].phase == "verifying"


def test_notices_are_told_at_once_and_the_last_are_kept() -> None:
    watched = Watched()
    watched.meter.add("a", 1, 1)
    for number in range(NOTICES + 2):
        watched.meter.notice(f"notice {number}")
        assert watched.seen[-1][1].notices[-1] == f"notice {number}"
    assert watched.seen[-1][1].notices[0] == "notice 2"


def test_a_silence_is_told_while_nothing_arrives_and_no_longer() -> None:
    watched = Watched()
    watched.meter.add("a", 1, 1)
    watched.clock.now_s += SILENCE_S - 1
    watched.meter.tick()
    assert watched.seen[-1][1].detail == ""
    watched.clock.now_s += 2
    watched.meter.tick()
    assert watched.seen[-1][1].detail == "no data for 4 s"
    watched.meter.add("a", 1, 1)
    watched.clock.now_s += INTERVAL_S
    watched.meter.tick()
    assert watched.seen[-1][1].detail == ""


def test_what_is_here_whole_is_not_silent() -> None:
    watched = Watched()
    for path in SIZES:
        watched.meter.verified(path)
    watched.clock.now_s += 100
    watched.meter.tick()
    assert watched.seen[-1][1].detail == ""


def test_a_long_wait_is_told_at_once_and_a_byte_ends_it_at_once() -> None:
    watched = Watched()
    watched.meter.add("a", 1, 1)
    watched.meter.waiting("HTTP 429; attempt 2 of 8 in 60 s", 60.0)
    assert watched.seen[-1][1].detail == "HTTP 429; attempt 2 of 8 in 60 s"
    watched.meter.add("a", 1, 1)
    assert watched.seen[-1][1].detail == ""


def test_a_short_wait_is_not_worth_a_word() -> None:
    watched = Watched()
    watched.meter.add("a", 1, 1)
    watched.meter.waiting("HTTP 503; attempt 2 of 8 in 1 s", 1.0)
    assert watched.meter.snapshot().detail == ""
    watched.clock.now_s += SILENCE_S - 1
    watched.meter.waiting("HTTP 503; attempt 3 of 8 in 2 s", 2.0)
    assert watched.meter.snapshot().detail == "HTTP 503; attempt 3 of 8 in 2 s"


def test_a_wait_is_told_again_when_the_others_bring_nothing_more() -> None:
    watched = Watched()
    watched.meter.waiting("HTTP 429; attempt 2 of 8 in 60 s", 60.0)
    watched.meter.waiting("HTTP 503; attempt 2 of 8 in 4 s", 4.0)
    watched.meter.add("a", 1, 1)
    assert watched.meter.snapshot().detail == ""
    watched.clock.now_s += SILENCE_S
    watched.meter.tick()
    assert watched.seen[-1][1].detail == "HTTP 429; attempt 2 of 8 in 60 s"
    watched.clock.now_s += 60
    watched.meter.tick()
    assert watched.seen[-1][1].detail == "no data for 63 s"


def test_a_pause_says_nothing_about_the_rate() -> None:
    watched = Watched()
    watched.clock.now_s += 1
    watched.meter.add("a", 100, 100)
    watched.clock.now_s += 1000
    watched.meter.resumed()
    watched.clock.now_s += 1
    watched.meter.add("a", 100, 100)
    assert watched.meter.snapshot().rate == pytest.approx(100)
    assert watched.meter.snapshot().detail == ""
