"""What a frontend keeps of the workers that it has started."""

from __future__ import annotations

import threading
from typing import Any

from shammah.supervision.lifecycle import Children

LIMIT_S = 60.0


class Started:
    """Stands in for a running child; who asks first waits for ``go_on``."""

    def __init__(self) -> None:
        self.polled, self.go_on = threading.Event(), threading.Event()
        self.code: int | None = None

    def poll(self) -> int | None:
        if not self.polled.is_set():
            self.polled.set()
            self.go_on.wait(LIMIT_S)
        return self.code


def test_two_that_are_started_side_by_side_are_both_kept() -> None:
    """One that is forgotten while it runs is a warning, and a zombie when it ends."""
    children: Any = Children()
    slow, *made = Started(), Started(), Started()
    for one in made:
        one.polled.set()
    children.add(slow)
    first, second = (threading.Thread(target=children.add, args=(one,)) for one in made)
    first.start()
    assert slow.polled.wait(LIMIT_S)
    second.start()
    second.join(0.2)  # nothing to wait for: it must not get further than the first
    slow.go_on.set()
    first.join(LIMIT_S)
    second.join(LIMIT_S)
    assert list(children) == [slow, *made]


def test_one_that_has_ended_is_forgotten_when_the_next_starts() -> None:
    children: Any = Children()
    ended, running, last = Started(), Started(), Started()
    for one in (ended, running):
        one.polled.set()
        children.add(one)
    ended.code = 0
    children.add(last)
    assert list(children) == [running, last]
