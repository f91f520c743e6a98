"""Pause, resume, cancel, and who comes first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from shammah.errors import ShammahError
from workers.download import control as controls
from workers.download.control import Control
from workers.download.slots import Slots

LIMIT_S = 60.0


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def ended(thread: threading.Thread) -> bool:
    thread.join(LIMIT_S)
    return not thread.is_alive()


def no_check() -> None:
    """Nobody wants an end."""


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_a_pause_holds_until_it_is_over() -> None:
    control = Control()
    control.check("m")
    control.pause()
    assert control.interrupted
    thread = in_thread(lambda: control.check("m"))
    assert thread.is_alive()
    control.resume()
    assert ended(thread)
    assert not control.interrupted


def test_a_cancel_ends_a_pause_and_every_later_one() -> None:
    control = Control()
    control.pause()
    control.cancel()
    control.pause()
    with pytest.raises(ShammahError) as caught:
        control.check("acme/tiny")
    assert caught.value.code == "download_cancelled"
    assert "acme/tiny" in caught.value.message


@pytest.mark.parametrize("act", [Control.pause, Control.cancel, Control.wake])
def test_a_wait_ends_early_when_something_is_wanted(act: Callable[[Control], None]) -> None:
    control, over = Control(), threading.Event()
    thread = in_thread(lambda: control.wait(1000.0, over.is_set))
    over.set()
    act(control)
    assert ended(thread)


def test_a_wait_lasts_as_long_as_its_clock_says() -> None:
    times = iter([0.0, 0.999, 1.0])
    control = Control(clock=lambda: next(times))
    control.wait(1.0)
    assert next(times, None) is None


def test_listeners_hear_of_every_change_until_they_are_forgotten() -> None:
    control, heard = Control(), []
    listener = lambda: heard.append(control.interrupted)  # noqa: E731
    control.listen(listener)
    control.pause()
    control.resume()
    control.forget(listener)
    control.cancel()
    assert heard == [True, False]


def test_the_more_urgent_comes_first_and_equals_take_turns() -> None:
    slots = Slots(1)
    order: list[str] = []
    threads = []
    waiting: set[str] = set()

    def take(name: str, priority: int) -> None:
        with slots.taken(priority, lambda: waiting.add(name)):
            order.append(name)

    def waits(name: str) -> bool:
        slots.wake()
        return name in waiting

    with slots.taken(0, no_check):
        for name, priority in (("low", 0), ("low again", 0), ("urgent", 5)):
            threads.append(in_thread(lambda name=name, priority=priority: take(name, priority)))  # type: ignore[misc]
            until(lambda name=name: waits(name))  # type: ignore[misc]
        assert slots.outranked(0)
        assert not slots.outranked(5)
    assert all(ended(thread) for thread in threads)
    assert order == ["urgent", "low", "low again"]
    assert not slots.outranked(-1)


def test_whoever_waits_for_a_slot_can_be_called_off() -> None:
    slots, called_off = Slots(1), threading.Event()
    caught: list[BaseException] = []

    def check() -> None:
        if called_off.is_set():
            raise ShammahError("download_cancelled", "no")

    def wait() -> None:
        try:
            with slots.taken(9, check):
                raise AssertionError
        except ShammahError as error:
            caught.append(error)

    with slots.taken(0, no_check):
        thread = in_thread(wait)
        until(lambda: slots.outranked(0))
        called_off.set()
        slots.wake()
        assert ended(thread)
        assert not slots.outranked(0)
    assert len(caught) == 1
    with slots.taken(0, no_check):
        pass


def test_a_pause_says_now_and_then_that_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controls, "BEAT_S", 0.001)
    beats: list[None] = []
    control = Control(alive=lambda: beats.append(None))
    control.pause()
    waiting = in_thread(lambda: control.check("m"))
    until(lambda: len(beats) > 3)
    control.resume()
    assert ended(waiting)


def test_a_look_is_a_sign_of_life() -> None:
    beats: list[None] = []
    control = Control(alive=lambda: beats.append(None))
    for _ in range(3):
        control.check("m")
    assert len(beats) == 3
