"""What ``shammah status`` knows about all workers, and the lines that show it. Pure."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shammah.bus.messages import Downloading, Event, Loading, Ready, State
from shammah.bus.training import Training, TrainingProgress
from shammah.bus.transfers import Transfer, Transferring
from shammah.cli.status_once import QUIET, not_running
from shammah.terminal.progress import Row, training_row
from shammah.terminal.text import printable
from shammah.terminal.wording import (
    describe_bytes,
    describe_duration,
    describe_size,
    describe_state,
    describe_transfer,
    short_name,
)

KEPT = 200
"""Events that can be shown; a terminal has fewer lines."""

INDENT = " " * 11
"""Before the lines that belong to a role."""

RATE_S = 10.0
"""Seconds over which tokens are counted."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What the operating system reports about a worker. Bytes; ``cpu`` in percent of one core."""

    memory: int = 0
    cpu: float = 0.0


@dataclass(slots=True)
class _Happened:
    wall_s: float
    role: str
    what: str
    said: str
    times: int = 1


@dataclass(slots=True)
class _Worker:
    event: Event
    since_s: float
    counted: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=64))


class Board:
    """The latest state of every role, and what happened recently."""

    def __init__(self, roles: tuple[str, ...]) -> None:
        self.roles = roles
        self.events = 0
        self._workers: dict[str, _Worker] = {}
        self._happened: deque[_Happened] = deque(maxlen=KEPT)

    def take(self, role: str, event: Event | None, wall_s: float) -> None:
        """Take in an event; ``None``: the worker is gone."""
        self.events += 1
        if event is None:
            if self._workers.pop(role, None) is not None:
                self._remember(_Happened(wall_s, role, "gone", ""))
            return
        known = self._workers.get(role)
        if known is None or known.event.run_id != event.run_id:
            known = self._workers[role] = _Worker(event, event.wall_s)
        if event.seq >= known.event.seq:  # what a worker kept comes later than what it says now
            known.event = event
            counted = known.counted
            if not counted or counted[-1][1] != event.status.tokens:
                counted.append((event.wall_s, event.status.tokens))
        known.since_s = min(known.since_s, event.wall_s)
        if event.what not in QUIET:
            said = describe_state(event.status.state)
            self._remember(_Happened(event.wall_s, role, event.what, said))

    def _remember(self, happened: _Happened) -> None:
        """Repeated state changes become one line with a count."""
        own = (one for one in reversed(self._happened) if one.role == happened.role)
        last = next(own, None)
        if last is not None and last.what == happened.what == "state":
            last.wall_s, last.said = happened.wall_s, happened.said
            last.times += 1
        else:
            self._happened.append(happened)

    # --- lines ----------------------------------------------------------------------------

    def rows(
        self, height: int, now_s: float, resources: Mapping[str, Resources], memory: str = ""
    ) -> list[Row]:
        """Return at most ``height`` lines, dropping the least important: a line for each role, its
        bars, its facts, what happened.

        ``now_s`` is wall time; ``memory`` says how much memory is free.
        """
        running = len(self._workers)
        clock = time.strftime("%H:%M:%S", time.localtime(now_s))
        title = f"Shammah {clock} · {running} of {len(self.roles)} workers"
        ranked = [(0, Row(title + (f" · {memory}" if memory else ""), "bold"))]
        for role in self.roles:
            fact = self._facts(role, now_s, resources.get(role))
            ranked.append((0, self._state_row(role)))
            ranked += [(2, fact)] if fact is not None else []
            ranked += [(1, bar) for bar in self._bars(role)]
        if len(ranked) > height:  # facts about some of them would look as if the others had none
            ranked = [(rank, row) for rank, row in ranked if rank != 2]
        if self._happened and len(ranked) + 2 <= height:
            latest = sorted(self._happened, key=lambda one: -one.wall_s)
            ranked += [(3, Row("")), *((3, self._happened_row(one)) for one in latest)]
        order = sorted(range(len(ranked)), key=lambda index: ranked[index][0])
        return [ranked[index][1] for index in sorted(order[: max(1, height)])]

    def _state_row(self, role: str) -> Row:
        worker = self._workers.get(role)
        if worker is None:
            return Row(not_running(role), "dim")
        state = worker.event.status.state
        style = {"Ready": "green", "Serving": "green", "Failed": "red", "NotAvailable": "yellow"}
        said = describe_state(_without_bar(state))
        if isinstance(state, Transferring) and state.transfers:
            count = len(state.transfers)
            said = f"Fetching {count} model" + ("" if count == 1 else "s")
        elif isinstance(state, Training) and state.progress and state.progress.steps:
            said = f"Training {short_name(state.progress.model)}"
        return Row(f"{role:10} {said}", style.get(type(state).__name__, ""))

    def _bars(self, role: str) -> list[Row]:
        worker = self._workers.get(role)
        match worker.event.status.state if worker else None:
            case Loading(_, stage, done, total) if total:
                return [Row(f"{INDENT}{stage}", "", done, total, f"{done}/{total}")]
            case Downloading() as coming:
                return [_download_row(coming)]
            case Ready(successor=Downloading() as coming):
                return [_download_row(coming)]
            case Transferring(transfers):
                return [_download_row(one) for one in transfers]
            case Training(TrainingProgress(steps=steps) as progress) if steps:
                return [training_row(progress, INDENT)]
        return []

    def _facts(self, role: str, now_s: float, used: Resources | None) -> Row | None:
        worker = self._workers.get(role)
        if worker is None:
            return None
        status = worker.event.status
        parts = [f"{status.clients} attached", f"{status.active} active or waiting"]
        if status.tokens:
            parts.append(f"{status.tokens:,} tokens")
        if rate := self.tokens_per_second(role, now_s):
            parts.append(f"{rate:.1f} tok/s recently")
        if used is not None and used.memory:
            parts.append(describe_size(used.memory))
            parts.append(f"{used.cpu:.0f}% cpu")
        if status.held:
            parts.append("confined")
        parts.append(f"up {describe_duration(max(0.0, now_s - worker.since_s))}")
        return Row(f"{INDENT}{' · '.join(parts)}", "dim")

    def tokens_per_second(self, role: str, now_s: float) -> float:
        """Return the rate of the answers that ended within the last `RATE_S`; 0 if none did."""
        worker = self._workers.get(role)
        recent = [one for one in worker.counted if now_s - one[0] <= RATE_S] if worker else []
        if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
            return 0.0
        return (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0])

    @staticmethod
    def _happened_row(one: _Happened) -> Row:
        clock = time.strftime("%H:%M:%S", time.localtime(one.wall_s))
        what = one.what + (f" ({one.times} times)" if one.times > 1 else "")
        return Row(f"{clock} {one.role:10} {what:16}  {one.said}".rstrip(), "dim")


def _without_bar(state: State) -> State:
    """Return ``state`` without what the bar below it says."""
    if isinstance(state, Ready) and state.successor is not None:
        name = f"fetching {short_name(state.successor.model)}"
        note = name + (f" · {state.note}" if state.note else "")
        return replace(state, successor=None, note=note)
    return state


def _download_row(one: Downloading | Transfer) -> Row:
    amount = describe_bytes(one.done, one.total, one.rate, one.eta_s)
    if isinstance(one, Transfer) and (one.phase != "running" or one.detail):
        amount = printable(describe_transfer(one))
    return Row(f"{INDENT}{printable(short_name(one.model))}", "", one.done, one.total, amount)
