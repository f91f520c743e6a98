"""``shammah status`` in a pipe, or of one moment: one line per event. Imports no click, which
takes longer than everything here."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from shammah.bus.endpoints import Endpoints, lock_holder
from shammah.bus.messages import Event
from shammah.bus.probe import GONE, ask_events, ask_states, describe_worker
from shammah.bus.transfers import Transferring
from shammah.cli.status_once import QUIET, not_running
from shammah.errors import ExitCode, ShammahError
from shammah.terminal.output import echo, print_json
from shammah.terminal.text import printable
from shammah.terminal.wording import describe_state

if TYPE_CHECKING:
    from shammah.bus.client import Peer


HANGING = " " * 11
"""Indents the rest of a long line, below the role."""


class Tail:
    """The events of several workers, present or not, as lines."""

    def __init__(self, endpoints: Endpoints, roles: tuple[str, ...], *, as_json: bool) -> None:
        self._endpoints = endpoints
        self._roles = roles
        self._as_json = as_json
        self._events: queue.SimpleQueue[tuple[str, Event | None]] = queue.SimpleQueue()
        self._peers: dict[str, Peer] = {}
        self._noticed: set[str] = set()

    def once(self) -> int:
        """Print one line per role. Fails if a running worker does not answer."""
        code = ExitCode.OK
        for role, found in ask_states(self._endpoints, self._roles):
            if isinstance(found, ShammahError):
                self._print_silent(role, found)
                code = ExitCode.FAILED
            else:
                self._print(role, found)
        return code

    def show_past(self, begin_s: float) -> None:
        """Print the events since ``begin_s`` that the workers still have, in order."""
        found: list[tuple[str, Event]] = []
        for role in self._roles:
            if lock_holder(self._endpoints.lock(role)) is None:
                continue
            try:
                events = ask_events(self._endpoints, role).events
            except ShammahError as error:
                if error.code != GONE:
                    self._print_silent(role, error)
                continue
            kept = [event for event in events if event.wall_s >= begin_s]
            found += [(role, event) for event in kept if self._shows(event)]
        for role, event in sorted(found, key=lambda one: one[1].wall_s):
            self._print(role, event)

    def follow(self) -> None:
        """Print the present states, then events as they happen, forever."""
        from shammah.bus.client import Peer

        absent = set()
        for role in self._roles:
            if lock_holder(self._endpoints.lock(role)) is None:
                absent.add(role)
                self._print(role, None)
            self._peers[role] = Peer(self._endpoints, role, None, self._listener(role))
        seen: dict[str, str] = {}
        while True:
            role, event = self._events.get()
            if event is None:
                if seen.pop(role, None) is not None:
                    absent.add(role)
                    self._print(role, None)
                continue
            if role in absent:
                absent.discard(role)
                for missed in filter(self._shows, events_before(self._endpoints, role, event)):
                    seen[role] = missed.run_id
                    self._print(role, missed)
            if self._shows(event) or seen.get(role) != event.run_id:
                seen[role] = event.run_id
                self._print(role, event)

    def close(self) -> None:
        for peer in self._peers.values():
            peer.close()

    def _shows(self, event: Event) -> bool:
        return self._as_json or event.what not in QUIET

    def _listener(self, role: str) -> Callable[[Event | None], None]:
        return lambda event: self._events.put((role, event))

    def _print(self, role: str, event: Event | None) -> None:
        if self._as_json:
            print_json(describe_worker(role, event))
        else:
            echo(_line(role, event), hanging=HANGING)
            for sentence in _notices(event):
                if sentence not in self._noticed:
                    self._noticed.add(sentence)
                    echo(f"{role:10} {sentence}", hanging=HANGING)

    def _print_silent(self, role: str, error: ShammahError) -> None:
        if self._as_json:
            print_json(describe_worker(role, error))
        else:
            echo(f"{role:10} {error}", hanging=HANGING)


def events_before(endpoints: Endpoints, role: str, first: Event) -> list[Event]:
    """List what a worker reported before ``first``, the first event received from it, as far as it
    still has that; nothing if it does not answer."""
    try:
        events = ask_events(endpoints, role).events
    except ShammahError:
        return []
    return [one for one in events if one.run_id == first.run_id and one.seq < first.seq]


def _line(role: str, event: Event | None) -> str:
    if event is None:
        return not_running(role)
    status = event.status
    clock = time.strftime("%H:%M:%S", time.localtime(event.wall_s))
    users = f"{status.clients} attached, {status.active} active, {status.tokens} tokens"
    return f"{role:10} {clock} {event.what:11} {describe_state(status.state)} [{users}]"


def _notices(event: Event | None) -> list[str]:
    """List what people should read in the worker's state, with the model it is about."""
    state = event.status.state if event else None
    if not isinstance(state, Transferring):
        return []
    return [printable(f"{one.model}: {said}") for one in state.transfers for said in one.notices]
