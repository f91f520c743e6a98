"""What a worker that the kernel kills leaves behind, so that the next one asks for less.

What is written down, and how a kill is distinguished from another death, is
`shammah.supervision.oom_record`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from shammah.settings.model import InferenceSettings
from shammah.supervision.oom_record import (
    Attempt,
    forget_attempt,
    kills_so_far,
    read_attempt,
    was_killed,
    write_attempt,
)

REMEMBERED_S = 24 * 3600.0
"""After that, memory may be another one: it is tried whole again."""

STEPS = 2
"""Kills that are answered by a step down. After one more, nothing is tried by itself."""


@dataclass(frozen=True, slots=True)
class Past:
    """How often the kernel has killed a worker with the same request; with which offer it did
    so last, and when that was found, in seconds since 1970."""

    deaths: int = 0
    model: str = ""
    level: int = -1
    since: float = field(default=0.0, compare=False)

    @property
    def given_up(self) -> bool:
        return self.deaths > STEPS


class Attempts:
    """The attempts at one model after the other, of which the last is in a file.

    Args:
        path: of the file.
        wall: seconds since 1970.
        pid: of this worker.
    """

    def __init__(self, path: Path, wall: Callable[[], float], pid: int) -> None:
        self._path = path
        self._wall = wall
        self._pid = pid
        self._asked = ""
        self._past = Past()

    def begin(self, model: str, asked: InferenceSettings) -> Past:
        """Begin a load of ``model``; return what became of earlier ones with these settings."""
        self._asked = hashlib.sha256(repr((model, asked)).encode()).hexdigest()[:16]
        self._past, now, last = Past(), self._wall(), read_attempt(self._path)
        if last is None or last.asked != self._asked:
            return self._past
        if last.pid != self._pid and was_killed(last):
            self._past = Past(last.deaths + 1, last.model, last.level, now)
        elif now - last.since <= REMEMBERED_S:
            self._past = Past(last.deaths, last.dead_model, last.dead_level, last.since)
        if self._past.deaths:
            self.note(self._past.model, self._past.level, "", pid=0)
        return self._past

    def note(self, model: str, level: int, next_step: str, pid: int | None = None) -> None:
        """Write down that ``model`` is now loaded at ``level``."""
        past = self._past
        attempt = Attempt(
            asked=self._asked,
            pid=self._pid if pid is None else pid,
            model=model,
            level=level,
            kills=kills_so_far(),
            next_step=next_step,
            deaths=past.deaths,
            dead_model=past.model,
            dead_level=past.level,
            since=past.since,
        )
        write_attempt(self._path, attempt)

    def end(self) -> None:
        """The worker ends by itself. What the kernel has killed is not tried again."""
        last = read_attempt(self._path)
        if last is None or last.deaths == 0:
            forget_attempt(self._path)
        else:
            write_attempt(self._path, replace(last, pid=0))
